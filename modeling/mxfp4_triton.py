"""Decoding MXFP4 on a GPU, by calculation: 4 bits read and 16 written a value."""

# torch brings Triton where it has CUDA, which the environment of the types has not.
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

BYTES = 2048
"""That one program decodes."""


def decode_by_triton(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Decode uint8 blocks (…, K/32, 16) and scales (…, K/32) to bf16 (…, K), exactly."""
    out = torch.empty(*scales.shape[:-1], 32 * scales.shape[-1], dtype=torch.bfloat16, device=blocks.device)
    if blocks.numel():
        programs = triton.cdiv(blocks.numel(), BYTES)
        _decode[(programs,)](blocks.contiguous(), scales.contiguous(), out.view(torch.int32), blocks.numel(), BYTES)
    return out


@triton.jit
def _decode(blocks, scales, out, count, span: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write one int32 for each byte: two bf16 values, the low nibble's in the low half."""
    at = tl.program_id(0).to(tl.int64) * span + tl.arange(0, span)
    inside = at < count
    byte = tl.load(blocks + at, mask=inside, other=0).to(tl.int32)
    scale = tl.load(scales + at // 16, mask=inside, other=0).to(tl.int32)
    pair = byte * 0
    for nibble in tl.static_range(2):
        code = (byte >> (4 * nibble)) & 15
        size = code & 7
        # bf16's bits of 0.5 at this scale; the codes above it follow in steps of 64, and 1 is the second
        bits = scale * 128 - 128 + tl.where(size > 1, 64 * size, 0)
        # below 2^-126 in steps of 2^-133 instead: twice the value, 0 1 2 3 4 6 8 12, times 2^(scale + 5) of them
        twice = tl.where(size < 4, size, tl.where(size < 6, 2 * size - 4, 4 * size - 16))
        bits = tl.where(bits < 128, twice << tl.minimum(scale + 5, 8), bits)
        bits = tl.where(size == 0, 0, tl.minimum(bits, 0x7F80))
        pair |= (bits | ((code & 8) << 12)) << (16 * nibble)
    tl.store(out + at, pair, mask=inside)
