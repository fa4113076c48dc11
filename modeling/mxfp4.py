"""MXFP4, the format in which gpt-oss stores its experts: kernels for both directions.

A row of K values is K/32 blocks. A block is 16 bytes, two 4-bit values (E2M1) each, the low nibble first, and one scale
byte: the power of two 2^(scale − 127) that multiplies its 32 values. Source: OCP Microscaling Formats (MX) v1.0,
sections 5.2 and 5.3; gpt-oss stores rows of the output dimension, (E, out, in/32, 16).

The kernels use one thread and release the GIL: the converters call them from a pool, so that every core works on a
tensor of its own. (numba's own threads must not be entered from two Python threads: its workqueue layer aborts.)
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numba
import numpy as np

from common.buffers import empty_bytes
from common.errors import CheckpointError

BLOCK = 32
NAN_SCALE = 255
NAN_MESSAGE = "an MXFP4 scale is NaN (255): the checkpoint is damaged, fetch it again."
# bit 3 is the sign, bits 2..1 the exponent, bit 0 the mantissa
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


def dequantize(blocks: np.ndarray, scales: np.ndarray, order: np.ndarray | None = None, threads: int = 1) -> np.ndarray:
    """Decode to bf16, exactly; only 4 and 6 at the scales 253 and 254, and 2 and 3 at 254, are infinite in bf16.

    Args:
        blocks: uint8 (…, K/32, 16).
        scales: uint8 (…, K/32).
        order: int64, which rows to decode: row i of the result is row order[i] of a matrix of two axes; all by default.
        threads: that share the rows; the converters have threads of their own.
    Returns:
        uint16 (…, K), bf16 bit patterns.
    Raises:
        CheckpointError: shapes do not belong together, or a scale is NaN (255).
    """
    if blocks.shape[:-1] != scales.shape or blocks.shape[-1] != BLOCK // 2:
        raise CheckpointError(
            f"MXFP4 blocks {blocks.shape} and scales {scales.shape} do not belong together: fetch it again."
        )
    if scales.size and scales.max() == NAN_SCALE:
        raise CheckpointError(NAN_MESSAGE)
    width = scales.shape[-1]
    rows = np.ascontiguousarray(scales).reshape(-1, width)
    order, shape = _ordered(order, len(rows), scales.shape[:-1])
    out = empty_bytes(len(order) * width * BLOCK * 2).view(np.uint32).reshape(-1, width, BLOCK // 2)
    values, pairs = np.ascontiguousarray(blocks).reshape(-1, width, BLOCK // 2), value_pairs()
    if threads == 1:
        _dequantize(values, rows, order, pairs, out)
    else:
        ends = [len(order) * part // threads for part in range(threads + 1)]
        parts = [
            _pool(os.getpid()).submit(_dequantize, values, rows, order[a:b], pairs, out[a:b]) for a, b in pairwise(ends)
        ]
        for part in parts:
            part.result()
    return out.view(np.uint16).reshape(*shape, width * BLOCK)


def requantize(values: np.ndarray, scales: np.ndarray, order: np.ndarray | None = None) -> np.ndarray | None:
    """Encode with scales that are given, where that loses nothing: the inverse of `dequantize`.

    Args:
        values: uint16 (…, K), bf16 bit patterns.
        scales: uint8 (…, K/32), none of them 255.
        order: int64, row i of the result is row order[i] of `values`, of two axes; `scales` stand in this order.
    Returns:
        uint8 blocks (…, K/32, 16) that decode to exactly these bits; None where there are none.
    """
    width = scales.shape[-1]
    rows = np.ascontiguousarray(values).reshape(-1, width, BLOCK)
    order, _ = _ordered(order, len(rows), ())
    blocks = empty_bytes(scales.size * BLOCK // 2).reshape(-1, width, BLOCK // 2)
    exact = _requantize(rows, np.ascontiguousarray(scales).reshape(-1, width), order, value_pairs(), blocks)
    return blocks.reshape(*scales.shape, BLOCK // 2) if exact else None


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
        raise CheckpointError(
            f"rows of {values.shape[-1]} values do not divide into MXFP4 blocks of {BLOCK}: choose bf16."
        )
    if not np.isfinite(values).all():
        raise CheckpointError("a weight is NaN or infinite and cannot be quantized: check the training run.")
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, BLOCK)
    blocks = np.empty((flat.shape[0], BLOCK // 2), dtype=np.uint8)
    scales = np.empty(flat.shape[0], dtype=np.uint8)
    _quantize(flat, flat.view(np.uint32), blocks, scales)
    shape = (*values.shape[:-1], values.shape[-1] // BLOCK)
    return blocks.reshape(*shape, BLOCK // 2), scales.reshape(shape)


@cache
def value_pairs() -> np.ndarray:
    """uint32 (255, 256): the two bf16 values of every byte at every scale, the low nibble's in the low half."""
    with np.errstate(over="ignore"):
        exact = np.ldexp(VALUES.astype(np.float64), np.arange(NAN_SCALE)[:, None] - 127).astype(np.float32)
    # a finite product has at most 2 significant bits and is at least 2^-128: bf16 holds it, if need be as a subnormal
    bits = exact.view(np.uint32) >> 16
    bits[np.isinf(exact)] &= 0xFF80
    byte = np.arange(256)
    return bits[:, byte & 15] | (bits[:, byte >> 4] << 16)


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(thread_name_prefix="mxfp4")


def _ordered(order: np.ndarray | None, rows: int, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """The rows to decode in their order, and the leading axes of the result."""
    return (np.arange(rows), shape) if order is None else (order, order.shape)


@numba.njit(nogil=True, cache=True)
def _dequantize(blocks: np.ndarray, scales: np.ndarray, order: np.ndarray, pairs: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(order)):
        row = order[i]
        for block in range(scales.shape[1]):
            table = pairs[scales[row, block]]
            for column in range(16):
                out[i, block, column] = table[blocks[row, block, column]]


@numba.njit(nogil=True, cache=True)
def _requantize(
    values: np.ndarray, scales: np.ndarray, order: np.ndarray, pairs: np.ndarray, blocks: np.ndarray
) -> bool:
    codes = np.empty(BLOCK, np.uint8)
    for i in range(len(order)):
        for block in range(scales.shape[1]):
            row, scale, out = values[order[i], block], scales[i, block], blocks[i, block]
            if not _requantize_block(row, scale, codes, out) and not _search(row, pairs[scale], out):
                return False
    return True


@numba.njit(inline="always")
def _requantize_block(values: np.ndarray, scale: int, codes: np.ndarray, out: np.ndarray) -> bool:
    """Encode 32 values by calculation; returns whether that is exact, which subnormals and infinities are not."""
    # bf16 bits of 0.5 at this scale: the larger ones stand in steps of 64 above it, where 1 is the second
    half = np.int32(np.int32(scale) * 128 - 128)
    wrong = np.int32(scale < 2)  # the small ones are subnormal there, in other steps
    for column in range(32):
        # without branches and in 32 bits, for the compiler to do eight at a time
        value = np.int32(values[column])
        size = np.int32(value & np.int32(0x7FFF))
        code = min(max(np.int32((size - half) >> np.int32(6)), np.int32(1)), np.int32(7))
        exact = np.int32(half + (np.int32(code * np.int32(64)) if code > np.int32(1) else np.int32(0)))
        not_zero = np.int32(size != 0)
        wrong |= np.int32(exact * not_zero) ^ size
        codes[column] = np.uint8(code * not_zero) | np.uint8((value >> np.int32(12)) & np.int32(8))
    for column in range(16):
        out[column] = codes[2 * column] | np.uint8(codes[2 * column + 1] << np.uint8(4))
    return wrong == 0


@numba.njit(nogil=True, cache=True)
def _search(values: np.ndarray, table: np.ndarray, blocks: np.ndarray) -> bool:
    """Find each pair's byte in a scale's table: subnormals, infinities, or values that no byte has."""
    for column in range(16):
        byte = 0
        pair = np.uint32(values[2 * column]) | np.uint32(values[2 * column + 1]) << np.uint32(16)
        while byte < 256 and table[byte] != pair:
            byte += 1
        if byte == 256:
            return False
        blocks[column] = byte
    return True


@numba.njit(nogil=True, cache=True)
def _quantize(values: np.ndarray, bits: np.ndarray, blocks: np.ndarray, scales: np.ndarray) -> None:
    for row in range(values.shape[0]):
        largest = np.uint32(0)
        for column in range(32):
            largest = max(largest, bits[row, column] & np.uint32(0x7FFFFFFF))
        # the exponent field of fp32 is floor(log2) + 127; E2M1's largest exponent is 2
        scale = max(np.int64(largest >> 23) - 2, 0)
        scales[row] = scale
        factor = 2.0 ** (127 - scale)
        for column in range(16):
            low = _nearest(values[row, 2 * column] * factor) | (bits[row, 2 * column] >> 31 << 3)
            high = _nearest(values[row, 2 * column + 1] * factor) | (bits[row, 2 * column + 1] >> 31 << 3)
            blocks[row, column] = low | (high << 4)


@numba.njit(inline="always")
def _nearest(value: float) -> int:
    """The nibble nearest to |value|; at a tie the one whose mantissa bit is 0."""
    size = abs(value)
    low = np.uint32(size > 0.25) + np.uint32(size >= 0.75) + np.uint32(size > 1.25)
    return low + np.uint32(size >= 1.75) + np.uint32(size > 2.5) + np.uint32(size >= 3.5) + np.uint32(size > 5.0)  # pyright: ignore[reportReturnType]
