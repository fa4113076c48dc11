"""Transposition as it is written to disk."""

from __future__ import annotations

import pytest
import torch

from converters.storage.transposition import transpose


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(4, 4), (64, 96), (68, 132), (6, 8), (8, 6), (1, 1), (200, 4)], ids=str)
def test_transpose_moves_every_bit(shape: tuple[int, int], dtype: torch.dtype) -> None:
    bits = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16 if dtype == torch.bfloat16 else torch.int32)
    found = transpose(bits.view(dtype))
    assert found.is_contiguous()
    assert torch.equal(found.view(bits.dtype), bits.T)
