"""The figures of a training as others read them, also while it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.history import HISTORY, last_loss, last_step, read_history


def test_a_row_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []
    rows = "".join(f'{{"step": {step}, "loss": {step / 10}}}\n' for step in range(1, 21))
    (tmp_path / HISTORY).write_text(rows + '{"step": 20, "val_loss": 1.5}\n{"step": 21, "lo')
    history = read_history(tmp_path)
    assert len(history) == 21
    assert last_step(history) == 20
    assert last_loss(history) == pytest.approx(1.55)
    assert last_loss(history[-1:]) is None
    assert last_step([]) == 0
