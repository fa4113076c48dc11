"""Disks that are full, read-only, not ours to write on, or gone: one sentence for each."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

_ROOM = "make room there, or name another disk"
_RIGHT = "name another folder, or get the right to write there"
_GONE = "the disk does not answer; see that it is there"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EACCES: _RIGHT,
    errno.EPERM: _RIGHT,
    errno.EROFS: _RIGHT,
    errno.EIO: _GONE,
    errno.ESTALE: _GONE,
    errno.ENODEV: _GONE,
    errno.ENXIO: _GONE,
    errno.ENOTCONN: _GONE,
    errno.ENOTDIR: "a file is where a folder should be; name another output",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.ELOOP: "its links go round in a circle; name another",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
# Writers that report no error number: numpy's `ndarray.tofile`, torch.save.
_FULL = 2**16


def problem_of(error: BaseException, folder: Path | None = None) -> str | None:
    """The sentence for an error of the disk; None where it is another one.

    Args:
        folder: what is written, for errors that do not say where they arose.
    """
    number, where = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    if number is None and isinstance(error, Exception) and folder is not None and is_full(folder):
        number = errno.ENOSPC
    if number == errno.ENOENT and folder is not None and not folder.exists():
        number, where = errno.ENODEV, folder
    if number not in _REMEDIES:
        return None
    return (
        f"{where or folder or 'a file'} cannot be read or written ({os.strerror(number)}): {_REMEDIES[number]}. "
        "What is finished is kept; the same command goes on from there."
    )


def is_full(folder: Path) -> bool:
    """Whether the disk of a folder, or of where it would be, has no room."""
    existing = next((each for each in (folder, *folder.absolute().parents) if each.is_dir()), None)
    return existing is not None and shutil.disk_usage(existing).free < _FULL
