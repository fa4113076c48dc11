"""report.html of an evaluation: figures, pictures, errors and the configuration on one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.pages import write_page
from data_prep.prepared import Ticket
from evaluation import charts
from evaluation.calibration import coverage_curve
from evaluation.charts import Bar, Line
from evaluation.findings import Findings
from evaluation.predictions import Predictions, Systems

TEMPLATE = Path(__file__).parent / "report.html.jinja"
SHOWN_ERRORS, SHOWN_SUSPECTS, SHOWN_TEXT = 12, 15, 700
MOST_LABELS = 42
"""In the confusion matrix; of more, those with most tickets are shown."""
COLOURS = ("lost", "validation", "training", "test")


def write_html(
    file: Path,
    findings: Findings,
    tickets: Sequence[Ticket],
    systems: Systems,
    configuration: str,
    histories: Mapping[str, list[dict[str, Any]]],
) -> None:
    """Render the report."""
    subject = systems[findings.subject]
    write_page(
        TEMPLATE,
        file,
        findings=findings,
        subject=findings.systems[findings.subject],
        overview=_overview(findings),
        languages=_languages(findings),
        confusion=_confusion(findings, tickets, subject),
        trust=_trust(findings, tickets, systems),
        trainings=[loss_curve(name, rows) for name, rows in histories.items() if rows],
        errors=_errors(tickets, subject),
        shown_suspects=SHOWN_SUSPECTS,
        shown_text=SHOWN_TEXT,
        configuration=configuration,
    )


def loss_curve(name: str, history: Sequence[Mapping[str, Any]]) -> Any:
    """Training and validation loss by step."""
    series = []
    for title, key, colour, dots in (
        ("training loss", "loss", "training", False),
        ("validation loss", "val_loss", "test", True),
    ):
        rows = [row for row in history if row.get(key) is not None]
        if rows:
            series.append(Line(title, [row["step"] for row in rows], [row[key] for row in rows], colour, dots))
    return charts.lines(f"Loss of {name}", series, x_axis="step", y_axis="loss")


def _overview(findings: Findings) -> Any:
    rows = [
        Bar(name, system.metrics.macro_f1, system.metrics.macro_f1_interval, _colour(findings, name))
        for name, system in findings.systems.items()
    ]
    return charts.bars("Macro-F1 with 95 % intervals", rows)


def _languages(findings: Findings) -> Any:
    """Macro-F1 of the last two systems in each language: base and tuned, or the best baseline and the model."""
    names = list(findings.systems)[-2:]
    rows = [
        Bar(
            f"{language or 'no language'}, {name}, {metrics.tickets} tickets",
            metrics.macro_f1,
            metrics.macro_f1_interval,
            _colour(findings, name),
        )
        for language in findings.systems[names[0]].metrics.per_language
        for name in names
        for metrics in (findings.systems[name].metrics.per_language[language],)
    ]
    return charts.bars("Macro-F1 by language with 95 % intervals", rows)


def _confusion(findings: Findings, tickets: Sequence[Ticket], predictions: Predictions) -> Any:
    given = Counter(ticket.label for ticket in tickets)
    most = [label for label, _ in given.most_common(MOST_LABELS)]
    used = [*given, *predictions.answers]
    labels = [label for label in predictions.labels if label in (most if len(set(used)) > MOST_LABELS else used)]
    places = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), int)
    for ticket, answer in zip(tickets, predictions.answers, strict=True):
        if ticket.label in places and answer in places:
            counts[places[ticket.label], places[answer]] += 1
    return charts.confusion(f"Given label (rows) and predicted label (columns), {findings.subject}", labels, counts)


def _trust(findings: Findings, tickets: Sequence[Ticket], systems: Systems) -> list[Any]:
    """Reliability of the last system, and coverage against precision of all that give probabilities."""
    pictures = []
    calibration = findings.systems[findings.subject].calibration
    if calibration:
        pictures.append(charts.reliability(f"Reliability of {findings.subject}", calibration.bins, calibration.ece))
    gold = [ticket.label for ticket in tickets]
    curves = []
    for name, predictions in systems.items():
        confidence = predictions.confidence
        if confidence is not None and len(np.unique(confidence)) > 1:
            _, coverages, precisions = coverage_curve(confidence, predictions.correct(gold))
            curves.append(Line(name, list(coverages), list(precisions), _colour(findings, name)))
    if curves:
        pictures.append(
            charts.lines(
                "Precision of what is routed, by the share that is routed",
                curves,
                x_axis="coverage",
                y_axis="precision",
                x_range=(0, 1),
                y_range=(0, 1),
            )
        )
    return pictures


def _errors(tickets: Sequence[Ticket], predictions: Predictions) -> list[tuple[Ticket, str, float | None]]:
    """Wrong answers, the surest first: ticket, answer, confidence."""
    wrong = np.flatnonzero(~predictions.correct([ticket.label for ticket in tickets]))
    confidence = predictions.confidence
    if confidence is not None:
        wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    return [
        (tickets[i], predictions.answers[i], None if confidence is None else float(confidence[i]))
        for i in wrong[:SHOWN_ERRORS]
    ]


def _colour(findings: Findings, name: str) -> str:
    """Colour of a system: fixed for the last one, by position for the others."""
    if name == findings.subject:
        return "test"
    return COLOURS[list(findings.systems).index(name) % (len(COLOURS) - 1)]
