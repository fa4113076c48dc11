"""The figures of a training, one row a step: history.jsonl in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HISTORY = "history.jsonl"


def read_history(training: Path) -> list[dict[str, Any]]:
    """The rows that `training.callbacks.step_metrics` wrote into a training's folder; none where there is no file.

    A row that is being written now is left out.
    """
    file = training / HISTORY
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def last_loss(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean loss of the last ten steps; None before the first."""
    losses = [float(row["loss"]) for row in rows if row.get("loss") is not None][-10:]
    return sum(losses) / len(losses) if losses else None


def last_step(rows: Sequence[Mapping[str, Any]]) -> int:
    """The last step that a training made; 0 before the first."""
    return int(rows[-1]["step"]) if rows else 0
