"""Decoding MXFP4 where the model is: numba on the CPU, Triton on a GPU, torch's own operations on a GPU without Triton.

All three give the same bits; the format is described in `modeling.mxfp4`.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import numpy as np
import torch

from modeling.mxfp4 import BLOCK, dequantize, value_pairs


def decode(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Decode to bf16, exactly.

    Args:
        blocks: uint8 (…, K/32, 16).
        scales: uint8 (…, K/32), none of them 255 (NaN).
    Returns:
        bf16 (…, K), on the same device.
    """
    if not blocks.is_cuda:
        return decode_by_numba(blocks, scales)
    if find_spec("triton") is None:
        return decode_by_torch(blocks, scales)
    from modeling.mxfp4_triton import decode_by_triton

    return decode_by_triton(blocks, scales)


def decode_by_numba(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """`decode` on the CPU, by as many threads as torch computes with."""
    bits = dequantize(blocks.numpy(), scales.numpy(), threads=torch.get_num_threads())
    return as_bf16(bits)


def as_bf16(bits: np.ndarray) -> torch.Tensor:
    """bf16 bit patterns, uint16, as a tensor of the same memory."""
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def decode_by_torch(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """`decode` by looking up each byte in the table of its scale; takes 16 times the bytes of `blocks` meanwhile."""
    table = _table(blocks.device)
    pairs = table[scales.long().unsqueeze(-1) * 256 + blocks.long()]
    return pairs.view(torch.bfloat16).reshape(*scales.shape[:-1], BLOCK * scales.shape[-1])


@cache
def _table(device: torch.device) -> torch.Tensor:
    """int32 (256 · 256,): the two bf16 values of each byte at each scale."""
    pairs = np.zeros((256, 256), np.uint32)
    pairs[:-1] = value_pairs()
    return torch.from_numpy(pairs.view(np.int32)).reshape(-1).to(device)
