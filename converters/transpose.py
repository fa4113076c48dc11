"""Transposing a large matrix of 16-bit values: twice as fast as a strided copy, on one thread, without the GIL."""

from __future__ import annotations

import numba
import numpy as np
import torch

_TILE = 64


def transpose(matrix: torch.Tensor) -> torch.Tensor:
    """A contiguous (C, R) copy of the transpose of `matrix` (R, C), of any dtype."""
    rows, columns = matrix.shape
    if matrix.element_size() != 2 or rows % 4 or columns % 4 or not matrix.is_contiguous():
        return matrix.T.contiguous()
    out = torch.empty((columns, rows), dtype=matrix.dtype)
    _transpose(matrix.view(torch.int64).numpy().view(np.uint64), out.view(torch.int64).numpy().view(np.uint64))
    return out


@numba.njit(nogil=True, cache=True)
def _transpose(source: np.ndarray, target: np.ndarray) -> None:
    """Blocks of 4 × 4 values at a time, four in a word of 64 bits, the first in its lowest bits."""
    low = np.uint64(0xFFFF)
    one, two, three = np.uint64(16), np.uint64(32), np.uint64(48)
    rows, words = source.shape
    for top in range(0, rows, _TILE):
        for left in range(0, words, _TILE // 4):
            for j in range(left, min(left + _TILE // 4, words)):
                for i in range(top, min(top + _TILE, rows), 4):
                    a, b, c, d = source[i, j], source[i + 1, j], source[i + 2, j], source[i + 3, j]
                    k = i // 4
                    target[4 * j, k] = (a & low) | (b & low) << one | (c & low) << two | d << three
                    a, b, c, d = a >> one, b >> one, c >> one, d >> one
                    target[4 * j + 1, k] = (a & low) | (b & low) << one | (c & low) << two | d << three
                    a, b, c, d = a >> one, b >> one, c >> one, d >> one
                    target[4 * j + 2, k] = (a & low) | (b & low) << one | (c & low) << two | d << three
                    a, b, c, d = a >> one, b >> one, c >> one, d >> one
                    target[4 * j + 3, k] = (a & low) | (b & low) << one | (c & low) << two | d << three
