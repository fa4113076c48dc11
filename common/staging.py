"""The folder in which an output is made: marked as ours, locked by whoever makes it, renamed when it is whole.

It stands beside the output as `NAME.nemo-run-partial`; inside of it where the output itself cannot be renamed, being a
mount point or the working folder. Nothing without our mark in it is touched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import NemoRunError

MARK = ".nemo-run"
"""File in a folder that is being made or replaced; holds what the folder is made from, and by whom."""
PARTIAL, FORMER = ".nemo-run-partial", ".nemo-run-former"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre without -o flock, NFS without lockd


def place_of(path: Path) -> Path:
    """The folder in which the output `path` is made."""
    return path / PARTIAL if is_fixed(path) else path.with_name(path.name + PARTIAL)


def former_of(path: Path) -> Path:
    """Where the former output stands while the new one takes its place."""
    return path.with_name(path.name + FORMER)


def is_fixed(path: Path) -> bool:
    """Whether a folder cannot be renamed: a mount point, or one that this process works in."""
    return path.is_dir() and (path.is_mount() or path in _mount_points() or Path.cwd().is_relative_to(path))


def _mount_points() -> set[Path]:
    """Also those that stand on the disk of the folder above them, which `Path.is_mount` does not see."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return set()  # not on Linux
    return {Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), line.split()[4])) for line in lines}


@contextmanager
def held(path: Path, made_from: str) -> Iterator[tuple[Path, bool]]:
    """The folder in which `path` is made, for this process alone; and whether it was begun from the same inputs.

    Raises:
        NemoRunError: another process makes it, or a folder of this name is not ours.
    """
    folder = place_of(path)
    mark = folder / MARK
    if folder.exists() and not mark.is_file() and any(folder.iterdir()):
        raise NemoRunError(f"{folder} is in the way and was not made by nemo-run: rename it, or name another output.")
    with _locked(mark, path) as file:
        begun = mark.read_text().partition("\n")[0]
        os.ftruncate(file, 0)
        os.pwrite(file, f"{made_from}\n{os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield folder, begun == made_from


@contextmanager
def _locked(mark: Path, path: Path) -> Iterator[int]:
    while True:
        mark.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                writer = mark.read_text().partition("\n")[2] if mark.is_file() else ""
                raise NemoRunError(
                    f"{path} is being written by another nemo-run (process {writer or 'unknown'}): wait for it, or "
                    "name another output."
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            if not _is_at(file, mark):  # its writer published it in between
                continue
            yield file
            return
        finally:
            os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def clear(folder: Path) -> None:
    """Remove everything in a marked folder but the mark."""
    for entry in list(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARK:
            entry.unlink()


def remove(folder: Path) -> None:
    """Remove a marked folder, the mark last: what a kill leaves of it is still ours."""
    clear(folder)
    (folder / MARK).unlink(missing_ok=True)
    folder.rmdir()


def restore(path: Path) -> None:
    """Undo an `exchange` that was killed between its renames, or end one that was killed after them.

    Raises:
        NemoRunError: a folder of the former's name is not ours.
    """
    former = former_of(path)
    if not former.is_dir():
        return
    if not any(former.iterdir()):
        former.rmdir()  # of which the mark, the last file, is removed already
        return
    if not (former / MARK).is_file():
        raise NemoRunError(f"{former} is in the way and was not made by nemo-run: rename it, or name another output.")
    if path.exists():
        remove(former)
    else:
        former.rename(path)


def exchange(folder: Path, path: Path) -> None:
    """Rename `folder` to `path`; what stood there goes only after the new one is in place."""
    former = former_of(path)
    if path.exists():
        (path / MARK).touch()
        path.rename(former)
    folder.rename(path)
    sync(path.parent)
    (path / MARK).unlink(missing_ok=True)
    if former.exists():
        remove(former)


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
