"""A training whose validation loss falls no more stops, and what goes on from it is its best checkpoint."""

from __future__ import annotations

import json

import pytest

from pipeline.checkpoints import best_checkpoint, exported_parts, last_checkpoint, tuned_of, validation_loss
from pipeline.run_folder import RunFolder
from tests.training.trainings import Done

pytestmark = pytest.mark.slow


def test_it_stops_and_the_best_is_used(trainings: dict[str, list[Done]]) -> None:
    done = trainings["early"][0]
    assert done.status == 0, done.out
    losses = {row["step"]: row["val_loss"] for row in done.history() if "val_loss" in row}
    steps = sorted(losses)
    best = min(steps, key=lambda step: losses[step])
    # patience 2: the first two validations in a row without a lower loss are the last
    assert steps[-1] == best + 4 < 40
    assert losses[best] < min(losses[step] for step in steps if step > best)
    assert max(row["step"] for row in done.history()) == steps[-1]
    assert f"finetune: stopped at step {steps[-1]}: the validation loss fell no more" in done.out

    run = RunFolder.open(done.run)
    assert tuned_of(run) == best_checkpoint(run.finetune) == exported_parts(run.path).adapter
    assert tuned_of(run).name == f"step={best}-val_loss={losses[best]:.6f}"
    assert validation_loss(tuned_of(run)) == pytest.approx(losses[best], abs=1e-6)
    assert last_checkpoint(run.finetune).name.startswith(f"step={steps[-1]}-")
    details = json.loads((done.run / "stages" / "finetune.json").read_text())["details"]
    assert details["checkpoint"] == str(tuned_of(run))
    assert f"validation loss {losses[best]:.3f}, the lowest, at step {best} of {steps[-1]}" in details["made"]


def test_a_stopped_training_is_not_gone_on_with(trainings: dict[str, list[Done]]) -> None:
    """As when it was killed between its last checkpoint and the stage's record."""
    first, again = trainings["early"]
    assert again.status == 0, again.out
    assert "step" not in again.out.split("adapter, loss")[0]
    assert first.history() == again.history()
