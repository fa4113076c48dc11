"""Direct I/O for files larger than memory that are read or written once: it bypasses the page cache where possible.

Through the cache (without O_DIRECT) every byte is copied once more, into a page that the kernel has to find and to
clear, which on a virtual machine takes longer than the disk; and it evicts the pages of other files.
"""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import weakref
from pathlib import Path

import numpy as np

from common.buffers import LARGE, empty_bytes

# Positions, lengths and addresses of direct requests must be multiples of the file system's block; this is one.
_PAGE = max(4096, mmap.PAGESIZE)
# Bytes copied at once to an aligned address: an expert of gpt-oss, since disks are faster with larger requests.
_STAGED = 2**25


class DirectFile:
    """A file that several threads read or write at any position; whole pages of large parts bypass the page cache.

    Args:
        cached: use the page cache nevertheless: for a file that another process reads at the same time.
    Raises:
        OSError: it cannot be opened, read or written.
    """

    def __init__(self, path: Path, flags: int = os.O_RDONLY, *, cached: bool = False) -> None:
        self.path = path
        self._cached = os.open(path, flags | os.O_CLOEXEC, 0o666)
        weakref.finalize(self, os.close, self._cached)
        self._direct: int | None = None
        if hasattr(os, "O_DIRECT") and not cached:  # not on macOS
            with contextlib.suppress(OSError):  # not on every file system
                self._direct = os.open(path, flags & ~os.O_TRUNC | os.O_CLOEXEC | os.O_DIRECT)
                weakref.finalize(self, os.close, self._direct)
                # only small scattered reads still use the cache: the kernel must not read ahead
                os.posix_fadvise(self._cached, 0, 0, os.POSIX_FADV_RANDOM)

    @property
    def cached(self) -> bool:
        """Whether all I/O uses the page cache: on request, or because the file system has no direct I/O."""
        return self._direct is None

    def read(self, position: int, size: int) -> np.ndarray:
        """uint8 (size,) from `position` on; shorter where the file ends."""
        if size >= LARGE and (direct := self._direct) is not None:
            before = position % _PAGE
            pages = empty_bytes((before + size + _PAGE - 1) // _PAGE * _PAGE)
            try:
                return pages[before : _read(direct, pages, position - before, before + size)]
            except OSError as error:
                self._refused(error)
        data = empty_bytes(size)
        return data[: _read(self._cached, data, position, size)]

    def write(self, data: bytes | memoryview, position: int) -> None:
        """Write all of `data` at `position`."""
        left = np.frombuffer(data, np.uint8)  # an array, for its address
        if len(left) >= LARGE and (direct := self._direct) is not None:
            start = -position % _PAGE
            stop = start + (len(left) - start) // _PAGE * _PAGE
            try:
                _write_pages(direct, left[start:stop], position + start)
                _write(self._cached, left[:start], position)
                left, position = left[stop:], position + stop
            except OSError as error:
                self._refused(error)
        _write(self._cached, left, position)

    def fileno(self) -> int:
        """For os.fsync."""
        return self._cached

    def _refused(self, error: OSError) -> None:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise error
        self._direct = None  # some file systems open a file for direct requests, and refuse them


class WriteStream(io.RawIOBase):
    """A new file that is written from its beginning to its end.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = DirectFile(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: bytes | memoryview) -> int:
        self._file.write(data, self._position)
        size = memoryview(data).nbytes
        self._position += size
        return size

    def fileno(self) -> int:
        """For os.fsync."""
        return self._file.fileno()


def _read(file: int, into: np.ndarray, position: int, size: int) -> int:
    """Read `size` bytes, or up to the file's end; returns their number."""
    done = 0
    while done < size and (count := os.preadv(file, [into[done:].data], position + done)):
        done += count
    return min(done, size)


def _write(file: int, data: np.ndarray, position: int) -> None:
    """Write all of `data`."""
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:].data, position + done)


def _write_pages(file: int, data: np.ndarray, position: int) -> None:
    """Write whole pages, from a copy where they do not begin at a page in memory."""
    if data.ctypes.data % _PAGE == 0:
        _write(file, data, position)
        return
    staged = empty_bytes(_STAGED)
    for start in range(0, len(data), _STAGED):
        part = data[start : start + _STAGED]
        staged[: len(part)] = part
        _write(file, staged[: len(part)], position + start)
