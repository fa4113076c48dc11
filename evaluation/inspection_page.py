"""inspect.html: what fine-tuning did to a model, for the person who must explain it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.pages import write_page
from evaluation import charts
from evaluation.charts import Line
from evaluation.report_page import loss_curve
from evaluation.weight_changes import Change

TEMPLATE = Path(__file__).parent / "inspection.html.jinja"
COLOURS = ("training", "test", "validation", "lost")


def write_html(
    file: Path,
    name: str,
    changes: Sequence[Change],
    answered: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    steps_an_epoch: float,
) -> None:
    """Render the page.

    Args:
        answered: the JSON that `evaluation.inspection.inspect_models` wrote.
        history: rows of history.jsonl.
        steps_an_epoch: optimizer steps in which every training ticket is seen once.
    """
    write_page(
        TEMPLATE,
        file,
        name=name,
        table=by_module(changes),
        weights=_weight_pictures(changes),
        routing=_routing_pictures(answered["systems"]),
        training=[loss_curve("fine-tuning", history), _learning_rate(history)] if history else [],
        history=[row for row in history if row.get("val_loss") is not None],
        steps_an_epoch=steps_an_epoch,
        tickets=answered["tickets"],
        systems=answered["systems"],
    )


def by_module(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """One row a module: its matrices, norms over all of them, and the mean effective rank."""
    groups: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        groups[change.module].append(change)
    rows = []
    for module, group in groups.items():
        weight, change = (_norm([getattr(each, name) for each in group]) for name in ("weight_norm", "change_norm"))
        ranks = [each.effective_rank for each in group if each.effective_rank is not None]
        rows.append(
            {
                "module": module,
                "matrices": len(group),
                "weight": weight,
                "change": change,
                "relative": change / weight if weight else 0.0,
                "rank": float(np.mean(ranks)) if ranks else None,
                "of": max((len(each.singular_values or []) for each in group), default=0),
            }
        )
    return rows


def _weight_pictures(changes: Sequence[Change]) -> list[Any]:
    inside = [change for change in changes if change.layer is not None]
    pictures = [_by_layer(inside)] if inside else []
    in_experts = [change for change in inside if change.expert is not None]
    if in_experts:
        pictures.append(_grid("Experts: ‖ΔW‖ / ‖W‖ by layer and expert", in_experts, lambda change: change.expert or 0))
    spectra: dict[str, list[list[float]]] = defaultdict(list)
    for change in changes:
        if change.singular_values and change.singular_values[0]:
            spectra[change.module].append(change.singular_values)
    if spectra:
        lines = [
            Line(module, range(1, len(values[0]) + 1), list(np.mean(values, axis=0)), COLOURS[i % len(COLOURS)])
            for i, (module, values) in enumerate(spectra.items())
        ]
        title = "Singular values of ΔW, mean over the module's matrices"
        pictures.append(charts.lines(title, lines, x_axis="number", y_axis="value"))
    return pictures


def _by_layer(changes: Sequence[Change]) -> Any:
    modules = list(dict.fromkeys(change.module for change in changes))
    return _grid(
        "‖ΔW‖ / ‖W‖ by layer and module",
        changes,
        lambda change: modules.index(change.module),
        columns=[name.rpartition(".")[2].removeprefix("linear_") for name in modules],
    )


def _grid(
    title: str, changes: Sequence[Change], place: Callable[[Change], int], columns: Sequence[str] | None = None
) -> Any:
    """Relative change by layer and column, over all matrices of each cell."""
    layers = 1 + max(change.layer or 0 for change in changes)
    wide = 1 + max(map(place, changes))
    squares = np.zeros((2, layers, wide))
    for change in changes:
        squares[:, change.layer or 0, place(change)] += change.change_norm**2, change.weight_norm**2
    values = np.sqrt(squares[0] / np.where(squares[1] > 0, squares[1], 1))
    return charts.heat(title, [f"layer {i}" for i in range(layers)], columns or [str(i) for i in range(wide)], values)


def _routing_pictures(systems: Mapping[str, Any]) -> list[Any]:
    """Each expert's share of the picks before training, and the change of that share by the last checkpoint."""
    counts = [np.array(system["picks"], float) for system in systems.values()]
    shares = [picks / np.maximum(picks.sum(axis=1, keepdims=True), 1) for picks in (counts[0], counts[-1])]
    rows = [f"layer {i}" for i in range(len(counts[0]))]
    columns = [str(i) for i in range(counts[0].shape[1])]
    before, *_, after = systems
    return [
        charts.heat(f"Share of the router's picks, {before}, by layer and expert", rows, columns, shares[0]),
        charts.heat(
            f"Change of that share, {after} minus {before}", rows, columns, shares[1] - shares[0], signed=True
        ),
    ]  # fmt: skip


def _learning_rate(history: Sequence[Mapping[str, Any]]) -> Any:
    rows = [row for row in history if row.get("lr") is not None]
    line = Line("learning rate", [row["step"] for row in rows], [row["lr"] for row in rows], "validation")
    return charts.lines("Learning rate", [line], x_axis="step", y_axis="rate")


def _norm(values: Sequence[float]) -> float:
    return float(np.sqrt(np.sum(np.square(values))))
