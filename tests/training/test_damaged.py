"""A training whose last checkpoint was damaged goes on from the one before, says so, and ends the same."""

from __future__ import annotations

import pytest
import torch

from pipeline.checkpoints import last_checkpoint
from tests.training.test_resume import figures, weights
from tests.training.trainings import Done

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "words"), [("flipped", "holds a tensor that is not what was written"), ("torn", "is truncated")]
)
def test_the_checkpoint_before_is_used(name: str, words: str, trainings: dict[str, list[Done]]) -> None:
    (whole,), (first, second) = trainings["worse"], trainings[name]
    assert (first.status, second.status) == (-9, 0), second.out
    assert words in second.out
    assert "finetune: resumed at step 5 of 20" in second.out
    assert figures(second) == figures(whole)
    expected, found = (weights(last_checkpoint(done.run / "finetune")) for done in (whole, second))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    (aside,) = (second.run / "finetune" / "damaged").iterdir()
    assert f"it lies in {aside} now" in second.out
