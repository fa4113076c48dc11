"""A pool of memory for short-lived tensors: the next tensor gets the memory of one that was freed.

The C library returns arrays of this size to the kernel, which clears every page before it gives it to a program again:
for gpt-oss that takes longer than decoding MXFP4.
"""

from __future__ import annotations

import mmap
import weakref

import numpy as np

LARGE = 2**20
"""Size in bytes from which on memory is pooled; NumPy and the C library serve smaller requests fast enough."""
_BLOCK = 2**25  # fits every part of gpt-oss that is converted at once, so that all parts share blocks of one size
_LARGEST = 2**29  # such as decoded experts in training; larger ones are rare: their memory goes back to the kernel
_left: dict[int, list[mmap.mmap]] = {}


def empty_bytes(size: int) -> np.ndarray:
    """uint8 (size,), uninitialized; where it is large, at the beginning of a page.

    Its memory returns to the pool when the last view of it is gone.
    """
    if size < LARGE:
        return np.empty(size, np.uint8)
    if size > _LARGEST:
        return np.frombuffer(_pages(size), np.uint8, size)
    reserved = max(_BLOCK, 1 << (size - 1).bit_length())  # untouched pages take no memory
    left = _left.setdefault(reserved, [])
    try:
        pages = left.pop()
    except IndexError:
        pages = _pages(reserved)
    array = np.frombuffer(pages, np.uint8, size)
    weakref.finalize(array, left.append, pages).atexit = False
    return array


def _pages(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
