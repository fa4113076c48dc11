"""Write the results of an evaluation to a folder, and show them on the console."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.prepared import Prepared, Ticket
from evaluation import baselines
from evaluation.findings import Findings, Goal, find
from evaluation.label_noise import noise_of_training
from evaluation.metrics import Interval
from evaluation.predictions import Systems
from evaluation.report_page import write_html

MAJORITY, TFIDF, NEAREST = "majority class", "TF-IDF + logistic regression", "nearest sentences"


@dataclass(frozen=True)
class About:
    """Context of the figures in a report.

    Attributes:
        inputs: what they were made from, for the manifest.
        configuration: of the run, as YAML or JSON; empty where there is none.
        histories: rows of history.jsonl of each training.
        notes: sentences on what the systems are, and on what they could not give.
    """

    inputs: dict[str, Any]
    configuration: str = ""
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def write_evaluation(
    folder: Path,
    prepared: Prepared,
    split: str,
    tickets: Sequence[Ticket],
    models: Systems,
    about: About,
    goal: Goal,
    sentence_model: Path | None = None,
) -> Findings:
    """Write metrics.json, predictions.jsonl and report.html into `folder`: the models beside the baselines.

    Args:
        tickets: those of the split that the models answered.
        models: the last of them is what the evaluation is about.
        sentence_model: folder of an encoder for the nearest-sentences baseline.
    """
    systems = {
        MAJORITY: baselines.majority(prepared, tickets),
        TFIDF: baselines.tfidf(prepared, tickets),
    }
    notes = list(about.notes)
    if sentence_model:
        systems[NEAREST] = baselines.nearest(prepared, tickets, sentence_model)
    else:
        notes.append("No sentence model was at hand for the baseline of nearest sentences (--sentence-model).")
    systems |= models
    noise = noise_of_training(prepared.training)
    if noise is None:
        notes.append("The training split is too small for an estimate of its label noise.")
    findings = find(split, tickets, systems, goal, noise, notes)
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for name, predictions in systems.items():
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions.rows(name, tickets))
    figures = json.dumps(asdict(findings), indent=1, ensure_ascii=False)
    (folder / "metrics.json").write_text(figures + "\n", encoding="utf-8")
    write_html(folder / "report.html", findings, tickets, systems, about.configuration, about.histories)
    return findings


def console_table(findings: Findings) -> str:
    """One row a system: micro- and macro-F1 with their intervals; below, what the last gained on each other."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{findings.tickets} {findings.split} tickets, 95 % intervals", title_justify="left")
    for heading in ("system", "micro-F1", "macro-F1"):
        table.add_column(heading)
    for name, system in findings.systems.items():
        value = system.metrics
        micro = _with_interval(value.micro_f1, value.micro_f1_interval)
        table.add_row(name, micro, _with_interval(value.macro_f1, value.macro_f1_interval))
    console = Console(width=110)
    with console.capture() as capture:
        console.print(table)
    lines = [capture.get().rstrip()]
    for name, gain in findings.comparisons.items():
        difference = f"{gain.macro_f1:+.3f} ({gain.macro_f1_interval[0]:+.3f} to {gain.macro_f1_interval[1]:+.3f})"
        lines.append(f"{findings.subject} − {name}: macro-F1 {difference}, McNemar p {gain.p_value:.2g}")
    return "\n".join(lines)


def _with_interval(value: float, interval: Interval) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
