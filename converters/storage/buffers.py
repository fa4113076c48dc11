"""Memory for tensors that come and go: what one has left, the next one gets.

The C library returns arrays of this size to the kernel, which clears every page before it gives it to a program again:
for gpt-oss that takes longer than decoding MXFP4.
"""

from __future__ import annotations

import mmap
import weakref

import numpy as np

LARGE = 2**20
"""Bytes from which on memory is kept; NumPy and the C library do the smaller ones well."""
_BLOCK = 2**25  # holds any part of gpt-oss that is converted at once: with one size, all of them share it
_LARGEST = 2**27  # what is larger is nothing that comes again and again
_left: dict[int, list[mmap.mmap]] = {}


def empty_bytes(size: int) -> np.ndarray:
    """uint8 (size,), uninitialized; where it is large, at the beginning of a page.

    Its memory is kept for the next one when the last view of it is gone.
    """
    if size < LARGE:
        return np.empty(size, np.uint8)
    if size > _LARGEST:
        return np.frombuffer(_pages(size), np.uint8, size)
    reserved = max(_BLOCK, 1 << (size - 1).bit_length())  # pages that nobody touches take no memory
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
