"""MXFP4, the format in which gpt-oss stores its experts: kernels for both directions.

A row of K values is K/32 blocks. A block is 16 bytes, two 4-bit values (E2M1) each, the low nibble first, and one scale
byte: the power of two 2^(scale − 127) that multiplies its 32 values. Source: OCP Microscaling Formats (MX) v1.0,
sections 5.2 and 5.3; gpt-oss stores rows of the output dimension, (E, out, in/32, 16).
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from errors import CheckpointError

BLOCK = 32
NAN_SCALE = 255
# bit 3 is the sign, bits 2..1 the exponent, bit 0 the mantissa
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)
_BF16_BITS = (VALUES.view(np.uint32) >> 16).astype(np.uint16)


def dequantize(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Decode to bf16; exact but for results below bf16's smallest normal number, which are rounded to nearest even.

    Args:
        blocks: uint8 (…, K/32, 16).
        scales: uint8 (…, K/32).
    Returns:
        uint16 (…, K), bf16 bit patterns.
    Raises:
        CheckpointError: shapes do not belong together, or a scale is NaN (255).
    """
    if blocks.shape[:-1] != scales.shape or blocks.shape[-1] != BLOCK // 2:
        raise CheckpointError(f"MXFP4 blocks {blocks.shape} and scales {scales.shape} do not belong together.")
    if scales.size and scales.max() == NAN_SCALE:
        raise CheckpointError("an MXFP4 scale is NaN (255): the checkpoint is damaged, fetch it again.")
    out = np.empty((scales.size, BLOCK), dtype=np.uint16)
    _dequantize(np.ascontiguousarray(blocks).reshape(-1, BLOCK // 2), np.ascontiguousarray(scales).reshape(-1), out)
    return out.reshape(*scales.shape[:-1], scales.shape[-1] * BLOCK)


def quantize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode: shared exponent floor(log2(max|x|)) − 2, values to the nearest of E2M1, ties to even, beyond 6 to 6.

    Args:
        values: float32 (…, K), K a multiple of 32, finite.
    Returns:
        uint8 blocks (…, K/32, 16) and uint8 scales (…, K/32).
    Raises:
        CheckpointError: K is no multiple of 32, or a value is not finite.
    Source: OCP Microscaling Formats (MX) v1.0, section 6.3.
    """
    if values.shape[-1] % BLOCK:
        raise CheckpointError(f"rows of {values.shape[-1]} values do not divide into MXFP4 blocks of {BLOCK}.")
    if not np.isfinite(values).all():
        raise CheckpointError("a weight is NaN or infinite and cannot be quantized: check the training run.")
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, BLOCK)
    blocks = np.empty((flat.shape[0], BLOCK // 2), dtype=np.uint8)
    scales = np.empty(flat.shape[0], dtype=np.uint8)
    _quantize(flat, blocks, scales)
    shape = (*values.shape[:-1], values.shape[-1] // BLOCK)
    return blocks.reshape(*shape, BLOCK // 2), scales.reshape(shape)


@numba.njit(parallel=True, nogil=True, cache=True)
def _dequantize(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    for row in numba.prange(blocks.shape[0]):
        shift = np.int32(scales[row]) - 127
        for column in range(16):
            byte = blocks[row, column]
            out[row, 2 * column] = _scaled(byte & 15, shift)
            out[row, 2 * column + 1] = _scaled(byte >> 4, shift)


@numba.njit(inline="always")
def _scaled(nibble: Any, shift: Any) -> Any:
    bits = np.int32(_BF16_BITS[nibble])
    if bits & 0x7FFF == 0:
        return np.uint16(bits)
    exponent = ((bits >> 7) & 0xFF) + shift
    if exponent >= 255:
        return np.uint16((bits & 0x8000) | 0x7F80)  # infinity: beyond bf16
    if exponent > 0:
        return np.uint16((bits & 0x807F) | (exponent << 7))
    # subnormal: shift the mantissa with its hidden bit, round to nearest even
    mantissa = (bits & 0x7F) | 0x80
    drop = 1 - exponent
    if drop > 8:
        return np.uint16(bits & 0x8000)
    kept = mantissa >> drop
    rest = mantissa & ((1 << drop) - 1)
    half = 1 << (drop - 1)
    if rest > half or (rest == half and kept & 1):
        kept += 1
    return np.uint16((bits & 0x8000) | kept)


@numba.njit(parallel=True, nogil=True, cache=True)
def _quantize(values: np.ndarray, blocks: np.ndarray, scales: np.ndarray) -> None:
    for row in numba.prange(values.shape[0]):
        largest = np.float32(0)
        for column in range(32):
            largest = max(largest, abs(values[row, column]))
        exponent = 0
        if largest > 0:
            # frexp: largest = m · 2^e with 0.5 ≤ m < 1, so floor(log2(largest)) = e − 1; E2M1's largest exponent is 2
            exponent = min(max(_exponent(largest) - 1 - 2 + 127, 0), 254)
        scales[row] = exponent
        factor = 2.0 ** (127 - exponent)
        for column in range(16):
            low = _nearest(values[row, 2 * column] * factor)
            high = _nearest(values[row, 2 * column + 1] * factor)
            blocks[row, column] = low | (high << 4)


@numba.njit(inline="always")
def _exponent(value: Any) -> int:
    """The exponent e of value = m · 2^e, 0.5 ≤ m < 1, for a positive value."""
    exponent = 0
    while value >= 1.0:
        value *= 0.5
        exponent += 1
    while value < 0.5:
        value *= 2.0
        exponent -= 1
    return exponent


@numba.njit(inline="always")
def _nearest(value: Any) -> int:
    """The nibble nearest to `value`; at a tie the one whose mantissa bit is 0."""
    size = abs(value)
    sign = 8 if math.copysign(1.0, value) < 0 else 0
    if size <= 0.25:
        code = 0
    elif size < 0.75:
        code = 1
    elif size <= 1.25:
        code = 2
    elif size < 1.75:
        code = 3
    elif size <= 2.5:
        code = 4
    elif size < 3.5:
        code = 5
    elif size <= 5.0:
        code = 6
    else:
        code = 7
    return sign | code
