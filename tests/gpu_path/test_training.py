"""The package's trainings on the GPU path: bf16, packed, distributed optimizer; and in fp32 beside the local spec."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu_path.checks.training import ASYNC_JOBS, EVERY, GPU_JOBS, STEPS
from tests.gpu_path.conftest import Results

pytestmark = [pytest.mark.slow, pytest.mark.foreign, pytest.mark.timeout(1000)]  # the first test waits for all checks


@pytest.fixture(scope="session")
def trainings(results: Results) -> dict[str, Any]:
    return results["training"]


def figures(training: dict[str, Any], *names: str) -> list[list[float]]:
    """A list for each step, of the first start to the last."""
    return [[row[name] for name in names] for row in training["history"] if names[0] in row]


@pytest.mark.parametrize("name", sorted({job.name for job in (*GPU_JOBS, *ASYNC_JOBS)}))
def test_a_training_reaches_its_end(trainings: dict[str, Any], name: str) -> None:
    found = trainings[name]
    assert found["status"] == 0, found["out"]
    losses = [loss for (loss,) in figures(found, "loss")]
    assert len(losses) == STEPS
    assert [row["step"] for row in found["history"] if "val_loss" in row] == [EVERY, STEPS]
    assert any(name.endswith("-last") for name in found["checkpoints"])


def nearly(losses: list[list[float]]) -> list[Any]:
    """Losses of bf16 steps whose sums have another order.

    That can turn a near-tie of the router, and a token gets another expert: the first two steps agree to 1e-4,
    later ones moved by 2e-4 to 7e-4 with one vocabulary or another, their gradients by less than 1 %.
    """
    return [pytest.approx(row, rel=2e-4 if step < 2 else 1e-3) for step, row in enumerate(losses)]


@pytest.mark.parametrize("name", ["tensor", "pipeline", "expert"])
def test_two_processes_train_as_one(trainings: dict[str, Any], name: str) -> None:
    """In bf16 sums of another order differ by its rounding; the loss and the norm tell a dropped gradient from that.

    Adapters at TP2 once learnt from gradients that were 19 % off; and no pipeline
    stage but the first could train, since NeMo gives the others no tokens to count.
    """
    alone, found = trainings["lora"], trainings[name]
    assert figures(found, "loss") == nearly(figures(alone, "loss"))
    assert figures(found, "grad_norm") == [pytest.approx(row, rel=5e-3) for row in figures(alone, "grad_norm")]
    if name != "expert":  # which has two data-parallel ranks, each with its own padding
        assert figures(found, "tokens") == figures(alone, "tokens")


@pytest.mark.parametrize(("name", "plain"), [("mxfp4", "lora"), ("mxfp4-expert", "expert")])
def test_experts_that_stay_mxfp4_train_the_same(trainings: dict[str, Any], name: str, plain: str) -> None:
    """Beside Transformer Engine's other modules; its own experts add their products up in another order, in bf16.

    tests/modeling compares the experts themselves, bit for bit.
    """
    found, expected = trainings[name], trainings[plain]
    assert figures(found, "loss") == nearly(figures(expected, "loss"))
    assert figures(found, "grad_norm") == [pytest.approx(row, rel=1e-2) for row in figures(expected, "grad_norm")]
    assert figures(found, "tokens") == figures(expected, "tokens")


def test_context_parallelism_trains_as_one_process(trainings: dict[str, Any]) -> None:
    """Megatron's own exchange, point to point, has no backend with sinks."""
    alone, found = trainings["dense"], trainings["context"]
    assert figures(found, "loss") == [pytest.approx(row, rel=2e-4) for row in figures(alone, "loss")]
    assert figures(found, "grad_norm") == [pytest.approx(row, rel=5e-3) for row in figures(alone, "grad_norm")]
    assert figures(found, "tokens") == figures(alone, "tokens")


@pytest.mark.parametrize("name", ["broken", "recomputed", "async"])
def test_neither_a_break_nor_recomputation_nor_saving_aside_changes_it(trainings: dict[str, Any], name: str) -> None:
    names = ("loss", "grad_norm", "lr", "tokens")
    assert figures(trainings[name], *names) == figures(trainings["lora"], *names)
    assert f"resumed at step {EVERY} of {STEPS}" in trainings["broken"]["out"]


def test_fp32_learns_what_the_local_spec_learns(trainings: dict[str, Any]) -> None:
    """Full precision has a backend of its own, and no fused cross entropy, which rounds gradients to bf16."""
    local = trainings["fp32-local"]
    assert local["status"] == 0, local["out"]
    for name in ("fp32", "fp32-tensor"):
        found = trainings[name]
        assert figures(found, "loss") == [pytest.approx(row, rel=1e-5) for row in figures(local, "loss")]
        assert figures(found, "grad_norm") == [pytest.approx(row, rel=1e-4) for row in figures(local, "grad_norm")]


def test_what_was_trained_is_exported(trainings: dict[str, Any]) -> None:
    """2 layers of 17 tensors, and 3 outside them; adapters change q, k, v, o and both expert matrices."""
    lora, full = (trainings[name]["exported"] for name in ("lora", "full"))
    assert lora == {"tensors": 2 * 17 + 3, "changed": 2 * 6}
    assert full["tensors"] == lora["tensors"]
    assert full["changed"] > 30
