"""Memory for tensors that come and go: what one has left, the next one gets.

The C library returns arrays of this size to the kernel, which clears every page before it gives it to a program again:
for gpt-oss that takes longer than decoding MXFP4.
"""

from __future__ import annotations

import mmap
import weakref
from collections import defaultdict

import numpy as np

LARGE = 2**20
"""Bytes from which on memory is kept; NumPy and the C library do the smaller ones well."""
_BLOCK = 2**25  # holds any part of gpt-oss that is converted at once: with one size, all of them share it
_left: defaultdict[int, list[mmap.mmap]] = defaultdict(list)


def empty_bytes(size: int) -> np.ndarray:
    """uint8 (size,), uninitialized; where it is large, at the beginning of a page.

    Its memory is kept for the next one when the last view of it is gone.
    """
    if size < LARGE:
        return np.empty(size, np.uint8)
    reserved = max(_BLOCK, 1 << (size - 1).bit_length())  # pages that nobody touches take no memory
    try:
        pages = _left[reserved].pop()
    except IndexError:
        pages = mmap.mmap(-1, reserved, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(pages, np.uint8, size)
    weakref.finalize(array, _left[reserved].append, pages).atexit = False
    return array
