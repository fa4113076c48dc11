"""Attention with sinks in torch against the formula spelled out in fp64: values, gradients, packs, windows, memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import pytest
import torch

from modeling import sink_attention as module
from modeling.sink_attention import block_attention, flex_attention
from tests.conftest import REPOSITORY, run_to_its_end
from tests.memory_profile import highest_memory

HEADS, GROUPS, WIDTH = 6, 2, 8
SCALE = 0.3


def case(batch: int, length: int, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v, sinks in fp64, and a gradient of the output; sinks large enough to matter."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shapes = [(batch, heads, length, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    return [*(random(*shape) for shape in shapes), random(HEADS) + 1, random(*shapes[0])]


def formula(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor, bounds: list[int], reach: int | None
) -> torch.Tensor:
    """The whole matrix of scores, one more column, softmax."""
    length = q.shape[2]
    k, v = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (k, v))
    row, column = torch.arange(length)[:, None], torch.arange(length)
    sequence = torch.cat([torch.full((b - a,), n) for n, (a, b) in enumerate(pairwise(bounds))])
    seen = (row >= column) & (sequence[:, None] == sequence)
    seen &= torch.tensor(True) if reach is None else row - column <= reach
    scores = (q @ k.transpose(2, 3) * SCALE).masked_fill(~seen, float("-inf"))
    column_of_sinks = sinks.view(1, -1, 1, 1).expand(len(q), -1, length, 1)
    return torch.cat([scores, column_of_sinks], dim=-1).softmax(-1)[..., :-1] @ v


def with_gradients(function: Any, inputs: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """The output and the gradients of q, k, v and sinks."""
    *values, above = (x.to(dtype) for x in inputs)
    leaves = [x.clone().requires_grad_() for x in values]
    out = function(*leaves)
    out.backward(above)
    return [out.detach(), *(leaf.grad for leaf in leaves)]  # type: ignore[misc]


SEQUENCES = {
    "dense": (3, [0, 53]),
    "packed": (1, [0, 1, 20, 20, 53]),
    "whole blocks": (1, [0, 16, 32]),
    "packs": (2, [0, 16, 33]),
}
REACHES = (None, 0, 7, 40)


@pytest.mark.parametrize("reach", REACHES, ids=lambda reach: f"reach {reach}")
@pytest.mark.parametrize(("batch", "bounds"), SEQUENCES.values(), ids=SEQUENCES)
def test_it_is_the_formula(batch: int, bounds: list[int], reach: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)
    inputs = case(batch, bounds[-1])

    def found(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
        return block_attention(q, k, v, sinks, bounds, reach, SCALE)

    expected = with_gradients(lambda q, k, v, sinks: formula(q, k, v, sinks, bounds, reach), inputs, torch.float64)
    results = with_gradients(found, inputs, torch.float32)
    for got, wanted in zip(results, expected, strict=True):
        assert wanted.abs().max() > 0.05
        assert (got.double() - wanted).abs().max() < 2e-5


@pytest.mark.slow
def test_flex_attention_is_the_formula() -> None:
    """Its values; on a CPU it has no backward pass. In a process of its own, which is no Megatron's."""
    program = "from tests.modeling.test_sink_attention import flex_differences; print(max(flex_differences()))"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = run_to_its_end([sys.executable, "-W", "ignore", "-c", program], env=environment, timeout=200, cwd=REPOSITORY)
    assert done.status == 0, done.err[-2000:]
    assert 0 < float(done.out) < 2e-5


def flex_differences() -> Iterator[float]:
    for (batch, bounds), reach in product(SEQUENCES.values(), REACHES):
        inputs = case(batch, bounds[-1])
        ends = None if len(bounds) == 2 else torch.tensor(bounds[:-1] if bounds[-1] == 33 else bounds)  # 33: padding
        q, k, v, sinks, _ = (x.float() for x in inputs)
        found = flex_attention(q, k, v, sinks, ends, reach, SCALE)
        exact = formula(inputs[0], inputs[1], inputs[2], inputs[3], bounds, reach)
        yield float((found.double() - exact).abs().max())


def test_bf16_is_rounded_once() -> None:
    """Scores, weights and sums are fp32: the output is the exact one of the bf16 inputs, rounded."""
    inputs = [x.bfloat16().double() for x in case(1, 300)]
    exact = with_gradients(lambda q, k, v, sinks: formula(q, k, v, sinks, [0, 100, 300], 60), inputs, torch.float64)

    def found(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
        return block_attention(q, k, v, sinks, [0, 100, 300], 60, SCALE)

    out, *gradients = with_gradients(found, inputs, torch.bfloat16)
    assert (out.double() - exact[0]).abs().max() <= exact[0].abs().max() * 2**-8
    for got, wanted in zip(gradients, exact[1:], strict=True):
        assert (got.double() - wanted).abs().max() <= 0.02 * wanted.abs().max()


def test_memory_grows_with_the_sequence_and_not_with_its_square() -> None:
    """Four times the tokens: all scores would take sixteen times the memory."""

    def peak(length: int) -> int:
        inputs = [x.float() for x in case(1, length)]

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
            return block_attention(q, k, v, sinks, [0, length], 100, SCALE)

        return highest_memory(lambda: with_gradients(attend, inputs, torch.float32))

    assert peak(4096) < 4.2 * peak(1024)
