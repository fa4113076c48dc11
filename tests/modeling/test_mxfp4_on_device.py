"""Every decoder of MXFP4 against the converters': every byte at every scale, and shapes that fill no program."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from modeling.mxfp4 import dequantize
from modeling.mxfp4_on_device import decode, decode_by_numba, decode_by_torch


def every_byte_and_scale() -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks (255, 16, 16) and scales (255, 16): each of the 256 bytes once at each of the 255 scales."""
    blocks = torch.arange(256, dtype=torch.uint8).reshape(16, 16).expand(255, 16, 16)
    scales = torch.arange(255, dtype=torch.uint8)[:, None].expand(255, 16)
    return blocks.contiguous(), scales.contiguous()


def odd_shapes() -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = np.random.default_rng(3)
    shapes = [(3, 5, 7), (1, 1, 1), (2, 129, 3), (0, 4, 2)]
    cases = [(random.integers(0, 256, (*s, 16), np.uint8), random.integers(0, 255, s, np.uint8)) for s in shapes]
    return [(torch.from_numpy(blocks), torch.from_numpy(scales)) for blocks, scales in cases]


CASES = [every_byte_and_scale(), *odd_shapes()]


def expected(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """By the kernel whose every value tests/modeling/test_mxfp4.py compares with the formula."""
    return torch.from_numpy(dequantize(blocks.numpy(), scales.numpy()).view(np.int16))


@pytest.mark.parametrize("decoder", [decode, decode_by_numba, decode_by_torch])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_decoders_give_the_same_bits(decoder: Callable[..., torch.Tensor], case: int) -> None:
    found = decoder(*CASES[case])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.view(torch.int16), expected(*CASES[case]))
