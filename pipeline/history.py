"""The figures of a training, one row a step: history.jsonl in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HISTORY = "history.jsonl"


def read_history(training: Path) -> list[dict[str, Any]]:
    """The rows that `training.callbacks.step_metrics` wrote into a training's folder; none where there is no file."""
    file = training / HISTORY
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines]


def last_loss(training: Path) -> float:
    """Mean loss of the last ten steps."""
    losses = [row["loss"] for row in read_history(training) if row.get("loss") is not None][-10:]
    return sum(losses) / len(losses)


def last_step(training: Path) -> int:
    """The last step that a training made."""
    return read_history(training)[-1]["step"]
