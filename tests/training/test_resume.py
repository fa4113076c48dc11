"""An interrupted training ends where the unbroken one does, bit for bit on the CPU, through the real `llm.finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from converters.storage.weights_reader import WeightsReader
from pipeline.checkpoints import best_checkpoint, last_checkpoint
from tests.training.conftest import STEPS
from tests.training.trainings import Done

pytestmark = pytest.mark.slow
EXACT = ("loss", "val_loss", "lr", "grad_norm", "tokens", "expert_entropy", "expert_largest_share")


def figures(done: Done) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("step", *EXACT) if name in row} for row in done.history()]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    reader = WeightsReader(checkpoint / "weights")
    return {key: reader.read(key) for key in reader.tensors if ".adapter." in key}


@pytest.mark.parametrize(
    ("unbroken", "broken", "resumed_at"),
    [
        # killed after step 12; told to stop after step 15, before its validation, so that step 16 was the last
        ("whole", "broken", [10, 16]),
        ("whole-ep2", "broken-ep2", [9]),
    ],
    ids=["one process", "EP2"],
)
def test_resumed_training_equals_the_unbroken_one(
    trainings: dict[str, list[Done]], unbroken: str, broken: str, resumed_at: list[int]
) -> None:
    (whole,), starts = trainings[unbroken], trainings[broken]
    assert whole.status == 0, whole.out
    assert starts[0].status == -9, starts[0].out
    assert [start.status for start in starts[1:]] == [143] * (len(starts) - 2) + [0], starts[-1].out
    for start, step in zip(starts[1:], resumed_at, strict=True):
        assert f"finetune: resumed at step {step} of {STEPS}" in start.out
    end = starts[-1]
    assert [row["step"] for row in whole.history() if "loss" in row] == list(range(1, STEPS + 1))
    assert figures(end) == figures(whole)
    for checkpoint in (last_checkpoint, best_checkpoint):
        expected, found = weights(checkpoint(whole.run / "finetune")), weights(checkpoint(end.run / "finetune"))
        assert len(found) == 8
        assert all(torch.equal(found[key], value) for key, value in expected.items())
        assert found.keys() == expected.keys()
        assert max(value.abs().max() for key, value in found.items() if "linear_out" in key) > 1e-3


def test_only_the_best_and_the_last_are_kept(trainings: dict[str, list[Done]]) -> None:
    for name, validated in (("whole", [5, 10, 15, 20]), ("broken", [5, 10, 15, 20]), ("broken-ep2", [9, 18, 20])):
        end = trainings[name][-1]
        losses = {row["step"]: row["val_loss"] for row in end.history() if "val_loss" in row}
        assert sorted(losses) == validated, "and the last step"
        best = min(losses, key=lambda step: losses[step])
        names = {path.name for path in (end.run / "finetune" / "checkpoints").iterdir()}
        assert names == {
            f"step={best}-val_loss={losses[best]:.6f}",
            f"step={STEPS}-val_loss={losses[STEPS]:.6f}-last",
        }
