"""The bytes of a ticket file, unpacked where it is packed: tickets.csv.gz, tickets.jsonl.zst, export.zip.

A table in an archive is named as if the archive were a folder: export.zip/tickets.csv.
"""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.values import one_line, size_text

PACKED = (".gz", ".zst")
ARCHIVE = ".zip"
MOST_TIMES, HARMLESS = 200, 64 * 2**20
"""An archive may unpack to so many times its size; tickets pack to a third or a thirtieth. Small ones are harmless."""


def archive_of(path: Path) -> tuple[Path, str] | None:
    """The archive that a path leads into, and the name in it; None where it leads to a file."""
    for parent in path.parents:
        if parent.suffix.lower() == ARCHIVE and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def is_there(path: Path) -> bool:
    """Whether a path is a regular file, or leads into an archive that is one; pipes and devices are not read."""
    return path.is_file() or archive_of(path) is not None


def members(archive: Path) -> list[Path]:
    """Files in an archive but hidden ones and those that a Mac adds, as paths.

    Raises:
        DataError: it is no archive.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [item.filename for item in opened.infolist() if not item.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"{archive} cannot be unpacked ({one_line(error)}): pack it again.") from None
    return [archive / name for name in sorted(names) if not name.startswith("__MACOSX/") and "/." not in f"/{name}"]


def suffix_of(path: Path) -> str:
    """The suffix that says what a file holds: `.csv` of tickets.CSV.gz."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in PACKED else suffix


def is_packed(path: Path) -> bool:
    return path.suffix.lower() in PACKED or archive_of(path) is not None


def open_bytes(path: Path) -> io.BufferedReader:
    """Open a file for reading, unpacked.

    Raises:
        DataError: it cannot be unpacked; also later, from reading, and when it unpacks to far more than its size.
    """
    if not is_packed(path):
        return path.open("rb")
    return io.BufferedReader(_Unpacked(path), 1 << 18)


class _Unpacked(io.RawIOBase):
    """What a packed file holds, up to a bound."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = 0
        with _as_sentence(self._path):
            self._packed, self._file = _opened(path)
        self._bound = max(HARMLESS, MOST_TIMES * self._packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _as_sentence(self._path):
            data = self._file.read(len(buffer))
        self._done += len(data)
        if self._done > self._bound:
            raise DataError(
                f"{self._path} unpacks to more than {MOST_TIMES} times its size ({size_text(self._packed)}), which no "
                "export of tickets does: unpack it yourself if you know what it is."
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _as_sentence(path: Path) -> Iterator[None]:
    """Turn what the unpackers raise into a DataError."""
    try:
        yield
    # NotImplementedError and RuntimeError: zipfile, of a method that it lacks or a password; ArrowInvalid: a ValueError
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{path} cannot be unpacked ({one_line(error, 120)}): pack it again.") from None


def _opened(path: Path) -> tuple[int, Any]:
    """The packed size, and a stream of what it holds."""
    inside = archive_of(path)
    if inside is not None:
        archive = zipfile.ZipFile(inside[0])
        size = archive.getinfo(inside[1]).compress_size
        with archive:  # the member keeps the file open
            return size, archive.open(inside[1])
    if path.suffix.lower() == ".zst":
        import pyarrow as pa

        return path.stat().st_size, pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
    return path.stat().st_size, gzip.open(path)
