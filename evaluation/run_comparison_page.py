"""comparison.html and comparison.csv: runs side by side on one page, and as a table for other programs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common import artifacts
from common.pages import write_page
from evaluation import charts
from evaluation.charts import Bar, Line
from evaluation.inspection_page import by_module
from evaluation.run_comparison import FIGURES, RunComparison
from evaluation.run_figures import BASE, Ran, total_of

TEMPLATE = Path(__file__).parent / "run_comparison.html.jinja"
COLOURS = 8
"""Runs that have a colour of their own, the best first; the others are grey."""
MOST_POINTS = 200
"""Of a loss curve; where there are more steps, each point is the mean of several."""
MOST_LETTERS = 24
"""Of a run's name beside a picture."""


def write_comparison(folder: Path, comparison: RunComparison) -> None:
    """Write comparison.html, comparison.csv and the manifest into a folder."""
    with (folder / "comparison.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["run", "waits_for", *comparison.settings, *FIGURES])
        writer.writeheader()
        writer.writerows(comparison.rows())
    _write_html(folder / "comparison.html", comparison)
    inputs = {
        run.name: run.settings | {name: asdict(score) for name, score in run.scores.items()} for run in comparison.runs
    }
    artifacts.write_manifest(folder, "comparison", inputs)


def _write_html(file: Path, comparison: RunComparison) -> None:
    colours = _colours(comparison)
    measured = [run for run in comparison.runs if run.changes]
    write_page(
        TEMPLATE,
        file,
        comparison=comparison,
        colours=colours,
        count=COLOURS,
        losses=_losses(comparison.runs, colours),
        scores=_scores(comparison, colours),
        totals={run.name: total_of(run.changes or []) for run in measured},
        weights=_weights(comparison.runs),
    )


def _colours(comparison: RunComparison) -> dict[str, str]:
    """A colour for each run: by macro-F1, then by validation loss, so that the best have one."""

    def rank(run: Ran) -> tuple[float, float]:
        return -run.score.macro_f1 if run.score else 1.0, run.validation[0] if run.validation else np.inf

    # in the order of the table as far as the colours go
    best = sorted(comparison.runs, key=rank)[:COLOURS]
    named = [run.name for run in comparison.runs if run in best]
    return {run.name: f"run{named.index(run.name)}" if run.name in named else "lost" for run in comparison.runs}


def _losses(runs: Sequence[Ran], colours: Mapping[str, str]) -> Any:
    series = []
    for run in sorted(runs, key=lambda run: colours[run.name] != "lost"):  # the grey ones below
        for key, dots in (("loss", False), ("val_loss", True)):
            rows = [(row["step"], row[key]) for row in run.history if row.get(key) is not None]
            if rows:
                x, y = _thinned(rows)
                series.append(Line(run.name, x, y, colours[run.name], dots))
    if not series:
        return None
    return charts.lines("Loss of fine-tuning: lines training, dots validation", series, x_axis="step", y_axis="loss")


def _thinned(rows: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Means of as many rows as keep the curve below `MOST_POINTS`."""
    many = -(-len(rows) // MOST_POINTS)
    groups = [np.mean(rows[start : start + many], axis=0) for start in range(0, len(rows), many)]
    return [float(x) for x, _ in groups], [float(y) for _, y in groups]


def _scores(comparison: RunComparison, colours: Mapping[str, str]) -> Any:
    """A bar a run, below one for the base where all runs start from the same."""
    bars = [
        Bar(run.name, run.score.macro_f1, run.score.macro_f1_interval, colours[run.name])
        for run in comparison.evaluated
        if run.score
    ]
    bases = {run.scores[BASE] for run in comparison.evaluated}
    if len(bases) == 1:
        base = bases.pop()
        bars.insert(0, Bar("before fine-tuning, all runs", base.macro_f1, base.macro_f1_interval, "lost"))
    return charts.bars("Macro-F1 with 95 % intervals", bars) if bars else None


def _weights(runs: Sequence[Ran]) -> Any:
    """‖ΔW‖ / ‖W‖ by run and module."""
    tables = {
        f"{number} {_short(run.name)}": {row["module"]: row["relative"] for row in by_module(run.changes)}
        for number, run in enumerate(runs, 1)
        if run.changes
    }
    if not tables:
        return None
    modules = list(dict.fromkeys(module for table in tables.values() for module in table))
    values = np.array([[table.get(module, 0.0) for module in modules] for table in tables.values()])
    columns = [name.rpartition(".")[2].removeprefix("linear_") for name in modules]
    return charts.heat("‖ΔW‖ / ‖W‖ by run and module", list(tables), columns, values)


def _short(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"
