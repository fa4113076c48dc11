"""Write what an evaluation found, and show it on the console."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.metrics import Metrics, compute_metrics
from evaluation.prepared import Ticket

if TYPE_CHECKING:
    from rich.table import Table


def write_evaluation(
    out: Path,
    tickets: Sequence[Ticket],
    predictions: Mapping[str, Sequence[str]],
    scores: Mapping[str, np.ndarray],
) -> dict[str, Metrics]:
    """Write metrics.json and predictions.jsonl into `out`.

    Args:
        predictions: for each system its label for each ticket.
        scores: for the systems that have them, log-probabilities (N, labels).
    Returns:
        The figures of each system, in the order of `predictions`.
    """
    gold, languages = [t.label for t in tickets], [t.language for t in tickets]
    metrics = {name: compute_metrics(gold, guesses, languages) for name, guesses in predictions.items()}
    figures = {name: asdict(value) for name, value in metrics.items()}
    (out / "metrics.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    confidence = {name: _confidence(values) for name, values in scores.items()}
    with (out / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for i, ticket in enumerate(tickets):
            row: dict[str, object] = {"id": ticket.id, "language": ticket.language, "label": ticket.label}
            row |= {name: guesses[i] for name, guesses in predictions.items()}
            row |= {f"{name} probability": round(float(values[i]), 4) for name, values in confidence.items()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return metrics


def _confidence(scores: np.ndarray) -> np.ndarray:
    """Probability of the best label among the label set, (N,)."""
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return 1 / shifted.sum(axis=1)


def summary_table(metrics: Mapping[str, Metrics]) -> Table:
    """One row a system: accuracy, micro- and macro-F1 with their intervals."""
    from rich.table import Table

    tickets = next(iter(metrics.values())).tickets
    table = Table(title=f"{tickets} held-out tickets, 95 % intervals", title_justify="left")
    for heading in ("system", "micro-F1", "macro-F1"):
        table.add_column(heading)
    for name, value in metrics.items():
        micro, macro = (
            _with_interval(value.micro_f1, value.micro_f1_interval),
            _with_interval(value.macro_f1, value.macro_f1_interval),
        )
        table.add_row(name, micro, macro)
    return table


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
