"""Transposing a large matrix of 16-bit values: twice as fast as a strided copy, on one thread, without the GIL."""

from __future__ import annotations

import numba
import numpy as np
import torch

from common.buffers import empty_bytes

_TILE = 64


def transpose(matrix: torch.Tensor, order: np.ndarray | None = None) -> torch.Tensor:
    """A contiguous (C, R) copy of the transpose of `matrix` (R, C), of any dtype.

    Args:
        order: int64 (R,); column i of the result is row order[i] of the matrix, row i by default.
    """
    rows, columns = matrix.shape
    if matrix.element_size() != 2 or rows % 4 or columns % 4 or not matrix.is_contiguous():
        return (matrix if order is None else matrix[order]).T.contiguous()
    out = torch.from_numpy(empty_bytes(2 * rows * columns)).view(matrix.dtype).reshape(columns, rows)
    source, target = (m.view(torch.int64).numpy().view(np.uint64) for m in (matrix, out))
    _transpose(source, np.arange(rows) if order is None else order, target)
    return out


@numba.njit(nogil=True, cache=True)
def _transpose(source: np.ndarray, order: np.ndarray, target: np.ndarray) -> None:
    """Blocks of 4 × 4 values at a time, four in a word of 64 bits, the first in its lowest bits."""
    low = np.uint64(0xFFFF)
    one, two, three = np.uint64(16), np.uint64(32), np.uint64(48)
    rows, words = source.shape
    for top in range(0, rows, _TILE):
        for left in range(0, words, _TILE // 4):
            for j in range(left, min(left + _TILE // 4, words)):
                for i in range(top, min(top + _TILE, rows), 4):
                    a, b = source[order[i], j], source[order[i + 1], j]
                    c, d = source[order[i + 2], j], source[order[i + 3], j]
                    k = i // 4
                    target[4 * j, k] = (a & low) | (b & low) << one | (c & low) << two | d << three
                    a, b, c, d = a >> one, b >> one, c >> one, d >> one
                    target[4 * j + 1, k] = (a & low) | (b & low) << one | (c & low) << two | d << three
                    a, b, c, d = a >> one, b >> one, c >> one, d >> one
                    target[4 * j + 2, k] = (a & low) | (b & low) << one | (c & low) << two | d << three
                    a, b, c, d = a >> one, b >> one, c >> one, d >> one
                    target[4 * j + 3, k] = (a & low) | (b & low) << one | (c & low) << two | d << three
