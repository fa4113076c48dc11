"""The table that `route` writes: rows of text that csv and pandas read back as they went in, and that a kill keeps.

Rows go to `OUT.partial`; beside it, `OUT.partial.inputs` says what they were made from and is locked by whoever writes.
The finished table has the companion `OUT.manifest.json`, by which it is known to be ours and unchanged.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from common import artifacts
from common.errors import DataError, LaunchError
from common.values import one_line

KIND = "routed-table"
Differs = Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]
"""Earlier inputs and those of now → what differs, None where rows made from either may stand in one table."""
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*")


def escape_formula(cell: str) -> str:
    """A cell that a spreadsheet shows instead of running it: an apostrophe before what begins as a formula does.

    An apostrophe goes also before what looks escaped already, so that taking one away gives back every cell.
    """
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def companion_of(out: Path) -> Path:
    """The manifest of a finished table."""
    return out.with_name(out.name + ".manifest.json")


class RoutedTable:
    """A table that is being written.

    Attributes:
        rows: in it so far.
        restarted: what differed from the inputs of an interrupted routing, whose rows were given up; empty for none.
    """

    def __init__(self, file: TextIO, rows: int, restarted: str) -> None:
        self.rows, self.restarted = rows, restarted
        self._file = file
        # _csv of Python 3.11 quotes a lone \r only where the end of a line holds one
        self._csv = csv.writer(self, lineterminator="\r\n")

    def append(self, row: Sequence[str]) -> None:
        """Write a row, on the disk's side of this process when this returns."""
        # pandas 2.3 ends a cell at a zero byte, which no CSV that this package reads has either
        self._csv.writerow([cell.replace("\0", "") for cell in row])
        self._file.flush()
        self.rows += 1

    def write(self, line: str) -> None:
        """Take a line from csv."""
        self._file.write(line.removesuffix("\r\n") + "\n")


def ensure_ours(out: Path) -> None:
    """Refuse to replace what `route` did not write.

    Raises:
        DataError: `out` is a folder, or a file without its companion or changed since.
    """
    companion = companion_of(out)
    manifest = artifacts.read_manifest(out.parent, companion)
    if out.is_dir():
        raise DataError(f"{out} is a folder: name a file with --out.")
    if companion.exists() and (manifest is None or manifest.kind != KIND):
        raise DataError(f"{companion} was not written by nemo-run route: name another file with --out.")
    if not out.exists() and not out.is_symlink():
        return
    known = {manifest.details.get("sha256"), manifest.details.get("replaces")} if manifest else set()
    if not out.is_file() or artifacts.hash_file(out) not in known:
        what = "was changed since nemo-run route wrote it" if manifest else "was not written by nemo-run route"
        raise DataError(f"{out} {what}: name another file with --out, or remove it first.")


@contextmanager
def write_table(
    out: Path, heading: Sequence[str], inputs: Mapping[str, Any], differs: Differs
) -> Iterator[RoutedTable]:
    """The table `out` from its heading on, or from where an interrupted routing of the same inputs stopped.

    It becomes `out` when the block ends without an error; else its rows are kept.

    Raises:
        DataError: a file of somebody else's is in the way, or nothing can be written there.
        LaunchError: another process writes the same table.
    """
    partial = artifacts.partial_of(out)
    note = partial.with_name(partial.name + ".inputs")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(note, out) as noted:
            ensure_ours(out)
            earlier = _ours(noted, partial, note)
            difference = differs(earlier, inputs) if earlier is not None else None
            rows, end = _whole_rows(partial) if earlier is not None and difference is None else (0, 0)
            if rows == 0:
                partial.unlink(missing_ok=True)
                _rewrite(noted, {"kind": KIND, "inputs": dict(inputs)})
            with partial.open("a", encoding="utf-8", newline="") as file:
                file.truncate(end)
                table = RoutedTable(file, max(0, rows - 1), difference or "")
                if rows == 0:
                    table.append(heading)
                    table.rows = 0
                yield table
                os.fsync(file.fileno())
            _publish(partial, out, inputs, table.rows)
            note.unlink()
    except OSError as error:
        raise DataError(
            f"{out} cannot be written ({one_line(error.strerror or error)}): mend that, or name another file with "
            "--out; rows that are written are kept, and the same command goes on from there."
        ) from error


@contextmanager
def _locked(note: Path, out: Path) -> Iterator[TextIO]:
    """The note, opened and locked."""
    while True:
        with note.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LaunchError(f"another nemo-run route writes {out}: wait for it, or name another file.") from None
            except OSError:
                pass  # a file system without locks
            try:
                same = os.path.samestat(os.fstat(file.fileno()), note.stat())
            except FileNotFoundError:
                same = False
            if same:  # else whoever held the lock has finished and taken the note away
                try:
                    yield file
                finally:
                    if os.fstat(file.fileno()).st_size == 0:
                        note.unlink()
                return


def _ours(noted: TextIO, partial: Path, note: Path) -> dict[str, Any] | None:
    """The inputs of an interrupted routing, None where there was none."""
    noted.seek(0)
    text = noted.read()
    if not text and not partial.exists():
        return None
    try:
        stated = json.loads(text)
        if stated["kind"] == KIND and isinstance(stated["inputs"], dict):
            return stated["inputs"]
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{partial if not text else note} was not written by nemo-run route: name another file with --out.")


def _rewrite(noted: TextIO, stated: Mapping[str, Any]) -> None:
    noted.truncate(0)
    noted.write(json.dumps(stated, ensure_ascii=False))
    noted.flush()
    os.fsync(noted.fileno())


def _publish(partial: Path, out: Path, inputs: Mapping[str, Any], rows: int) -> None:
    """Companion first, naming the hash that it replaces too: whenever this is killed, `out` is known to be ours."""
    details = {"rows": rows, "sha256": artifacts.hash_file(partial)}
    details["replaces"] = artifacts.hash_file(out) if out.exists() else None
    files = {out.name: partial.stat().st_size}
    manifest = artifacts.Manifest(KIND, artifacts.fingerprint(inputs), dict(inputs), files, details)
    artifacts.store_manifest(manifest, companion_of(out))
    partial.replace(out)


def _whole_rows(partial: Path) -> tuple[int, int]:
    """Rows that end with a line break outside quotes, heading included, and the bytes that they take."""
    rows = end = read = quotes = 0
    if not partial.exists():
        return rows, end
    with partial.open("rb") as lines:
        for line in lines:
            read += len(line)
            quotes += line.count(b'"')
            if quotes % 2 == 0 and line.endswith(b"\n"):
                rows, end = rows + 1, read
    return rows, end
