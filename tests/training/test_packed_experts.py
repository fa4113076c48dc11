"""Experts that stay MXFP4 train adapters as bf16 experts do, through the real `llm.finetune`: bit for bit on a CPU."""

from __future__ import annotations

import pytest
import torch

from converters.nemo_reader import NemoReader
from pipeline.checkpoints import last_checkpoint
from tests.training.conftest import STEPS
from tests.training.test_resume import figures, weights
from tests.training.trainings import Done

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("packed", "plain"), [("packed", "whole"), ("packed-ep2", "whole-ep2")])
def test_it_trains_what_bf16_experts_train(trainings: dict[str, list[Done]], packed: str, plain: str) -> None:
    """The one of a single process was killed and resumed besides."""
    found, wanted = trainings[packed][-1], trainings[plain][-1]
    assert (found.status, wanted.status) == (0, 0), found.out
    assert NemoReader(found.run / "base").packed
    assert not NemoReader(wanted.run / "base").packed
    assert figures(found) == figures(wanted)
    a, b = (weights(last_checkpoint(done.run / "finetune")) for done in (found, wanted))
    assert a.keys() == b.keys()
    assert len(a) == 8
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_pipeline_stages_train_the_same(trainings: dict[str, list[Done]]) -> None:
    found, wanted = trainings["packed-pp2"][-1], trainings["whole-ep2"][-1]
    assert found.status == 0, found.out
    losses, expected = ([row["loss"] for row in done.history() if "loss" in row] for done in (found, wanted))
    assert len(losses) == STEPS
    assert losses == pytest.approx(expected, rel=1e-4)
