"""The MXFP4 kernels against the formula, value by value, and against transformers' own decoder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import CheckpointError
from modeling.mxfp4 import VALUES, dequantize, quantize, requantize

# E2M1 spelled out once more, by hand: the module's own table is what is under test
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def every_byte_and_scale() -> tuple[np.ndarray, np.ndarray]:
    """Blocks (255, 16, 16) and scales (255, 16): each of the 256 bytes once at each of the 255 scales."""
    blocks = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (255, 16, 16))
    scales = np.broadcast_to(np.arange(255, dtype=np.uint8)[:, None], (255, 16))
    return blocks, scales


def bf16_bits(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values.astype(np.float32)).bfloat16().view(torch.int16).numpy().view(np.uint16)


def scalar_reference(byte: int, scale: int) -> tuple[float, float]:
    """The two values of a byte, low nibble first, in double precision."""
    low, high = byte & 15, byte >> 4
    values = [math.copysign(E2M1[n & 7], -1.0 if n & 8 else 1.0) for n in (low, high)]
    return math.ldexp(values[0], scale - 127), math.ldexp(values[1], scale - 127)


def test_dequantize_equals_the_formula_for_every_byte_and_scale() -> None:
    blocks, scales = every_byte_and_scale()
    expected = [v for s in range(255) for byte in range(256) for v in scalar_reference(byte, s)]
    with np.errstate(over="ignore"):
        bits = bf16_bits(np.array(expected))
    np.testing.assert_array_equal(dequantize(blocks, scales).ravel(), bits)


def test_dequantize_writes_subnormals_and_signed_zeros() -> None:
    blocks = np.zeros((1, 16), np.uint8)
    blocks[0, 0] = 0x91  # 0.5, then −0.5
    blocks[0, 1] = 0x80  # 0, then −0
    bits = dequantize(blocks, np.zeros(1, np.uint8))
    # 0.5 · 2^-127 = 2^-128 = 32 · 2^-133, bf16's smallest step
    assert bits[:4].tolist() == [32, 0x8000 | 32, 0, 0x8000]


@pytest.mark.parametrize("scale_range", [(2, 252), (100, 130)])
def test_dequantize_equals_transformers(scale_range: tuple[int, int]) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (3, 10, 2, 16), dtype=np.uint8)
    scales = random.integers(*scale_range, (3, 10, 2), dtype=np.uint8)
    theirs = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales))  # (E, in, out)
    ours = dequantize(blocks, scales)  # (E, out, in)
    np.testing.assert_array_equal(ours, theirs.transpose(1, 2).contiguous().view(torch.int16).numpy().view(np.uint16))


def test_requantize_inverts_dequantize_for_every_byte_and_scale() -> None:
    blocks, scales = every_byte_and_scale()
    finite = 252  # beyond, different nibbles become the same infinity
    result = requantize(dequantize(blocks[:finite], scales[:finite]), scales[:finite])
    assert result is not None
    np.testing.assert_array_equal(result, blocks[:finite])


@pytest.mark.parametrize("value", [0.75, 5.0, 7.0, -1.25, 1e-30])
def test_requantize_refuses_what_is_no_value_of_the_scale(value: float) -> None:
    values = np.ones((2, 32), np.float32)
    values[1, 17] = value
    assert requantize(bf16_bits(values), np.full((2, 1), 127, np.uint8)) is None


def scalar_quantize(row: list[float]) -> tuple[list[int], int]:
    """OCP MX v1.0, 6.3, one value at a time: exhaustive search for the nearest, even mantissa at a tie."""
    largest = max(abs(x) for x in row)
    exponent = math.floor(math.log2(largest)) - 2 if largest > 0 else -127
    exponent = min(max(exponent, -127), 127)
    codes = []
    for x in row:
        size = math.ldexp(abs(x), -exponent)
        best = min(range(8), key=lambda code: (abs(E2M1[code] - size), code & 1))
        codes.append(best | (8 if math.copysign(1.0, x) < 0 else 0))
    return codes, exponent + 127


def unpack(blocks: np.ndarray) -> list[int]:
    return [int(n) for byte in blocks.ravel() for n in (byte & 15, byte >> 4)]


halves = st.integers(-28, 28).map(lambda i: i / 4)  # every value of E2M1, every tie between two, and beyond
floats = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-(2.0**-120), 2.0**-120, width=32)


@settings(max_examples=300, deadline=None)
@given(st.lists(halves | floats, min_size=32, max_size=32), st.integers(-20, 20))
def test_quantize_equals_the_exhaustive_search(values: list[float], power: int) -> None:
    row = np.ldexp(np.array(values, np.float32), power).astype(np.float32)
    blocks, scales = quantize(row[None])
    codes, scale = scalar_quantize([float(x) for x in row])
    assert int(scales[0, 0]) == scale
    assert unpack(blocks) == codes


def test_quantize_names_a_value_that_is_not_finite() -> None:
    values = np.ones((1, 32), np.float32)
    values[0, 5] = np.nan
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        quantize(values)


def test_quantize_refuses_rows_that_are_no_whole_blocks() -> None:
    with pytest.raises(CheckpointError, match="40 values"):
        quantize(np.ones((1, 40), np.float32))


def test_nan_scale_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="NaN"):
        dequantize(np.zeros((1, 2, 16), np.uint8), np.array([[127, 255]], np.uint8))


def test_blocks_and_scales_must_belong_together() -> None:
    with pytest.raises(CheckpointError, match="do not belong together"):
        dequantize(np.zeros((1, 2, 16), np.uint8), np.zeros((1, 3), np.uint8))


def test_values_are_e2m1() -> None:
    assert VALUES.tolist() == [*E2M1, *(-v for v in E2M1)]
    assert np.signbit(VALUES).tolist() == [False] * 8 + [True] * 8
