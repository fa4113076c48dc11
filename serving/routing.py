"""Route the rows of a table through an endpoint, in their order; an interrupted routing goes on where it stopped."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from common import artifacts
from common.progress import Done, Progress, quiet
from data_prep.cleaning import Cleaner
from data_prep.columns import find_text
from data_prep.harmony import Prompt
from data_prep.prepared import Routing
from data_prep.sources import Row, Source, open_source
from serving.endpoint import AT_ONCE, Endpoint, RefusedError, at_once

ADDED = ("routed_to", "probability", "problem")
"""Columns of the output after the source's; the probability is that of the answer's tokens, as the server says."""


@dataclass
class Routed:
    """Result of a routing; `problems` are those of rows that the server refused or that have no text."""

    rows: int = 0
    resumed: int = 0
    damaged: int = 0
    problems: list[str] = field(default_factory=list)


def route(
    file: Path,
    out: Path,
    routing: Routing,
    endpoint: Endpoint,
    *,
    subject: str | None = None,
    body: str | None = None,
    progress: Progress = quiet,
) -> Routed:
    """Write the table with a label for each row, as CSV.

    Args:
        subject, body: columns of the text; by default those with a usual name.
        progress: receives the rows done and all rows.
    Raises:
        DataError: the table cannot be read or has no text. LaunchError: the server cannot be reached or does not
            constrain its answers; what was routed until then is kept, and the same call goes on from there.
    """
    source = open_source(file)
    columns = find_text(source.columns, source.name, subject, body)
    ask = _Asker(endpoint, routing, Prompt(*routing.around), source.columns, columns)
    inputs = {"file": artifacts.hash_file(file), "labels": routing.labels, "model": endpoint.model, "columns": columns}
    partial = artifacts.partial_of(out)
    routed = Routed()
    total = sum(isinstance(row, Row) for row in open_source(file).rows(source.columns))
    with _open(partial, [*source.columns, *ADDED], artifacts.fingerprint(inputs)) as writer:
        routed.rows = routed.resumed = writer.rows
        rows = islice(_readable(source, routed), writer.rows, None)
        while batch := list(islice(rows, 4 * AT_ONCE)):
            for row, answer in zip(batch, at_once(ask, batch), strict=True):
                writer.write([*row, *answer])
                routed.rows += 1
                if answer[2]:
                    routed.problems.append(answer[2])
                progress(Done("tickets", routed.rows, total))
    partial.replace(out)
    _note(partial).unlink()
    return routed


@dataclass
class _Asker:
    """Asks for one row's label."""

    endpoint: Endpoint
    routing: Routing
    prompt: Prompt
    names: Sequence[str]
    columns: tuple[str | None, str | None]

    def __post_init__(self) -> None:
        self._answers = self.routing.answers
        self._cleaner = Cleaner(self.routing.skip)
        self._places = [self.names.index(name) for name in self.columns if name is not None]

    def __call__(self, row: Sequence[str]) -> tuple[str, str, str]:
        text = "\n".join(filter(None, self._cleaner.clean(*(row[place] for place in self._places))))
        if not text:
            return "", "", "no text"
        try:
            choice = self.endpoint.choose(self.prompt.fill(text), list(self._answers))
        except RefusedError as refused:
            if not refused.of_prompt:
                raise
            return "", "", str(refused)
        has_confidence = choice.log_probability is not None
        return self._answers[choice.label], f"{math.exp(choice.log_probability or 0):.4f}" if has_confidence else "", ""


def _readable(source: Source, routed: Routed) -> Iterator[list[str]]:
    for row in source.rows(source.columns):
        if isinstance(row, Row):
            yield row.values
        else:
            routed.damaged += 1


class _Writer:
    """Appends rows to a CSV file, each of them whole on the disk before the next."""

    def __init__(self, file: io.TextIOWrapper, rows: int) -> None:
        self.rows = rows
        self._file = file
        self._csv = csv.writer(file, lineterminator="\n")

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, row: Sequence[str]) -> None:
        self._csv.writerow(row)
        self._file.flush()


def _open(partial: Path, heading: Sequence[str], fingerprint: str) -> _Writer:
    """The file of an interrupted routing of the same inputs, without the row that the end cut off, or a new one."""
    note = _note(partial)
    if partial.is_file() and note.is_file() and note.read_text() == fingerprint:
        rows, end = _whole_rows(partial)
        if rows:
            with partial.open("r+b") as file:
                file.truncate(end)
            return _Writer(partial.open("a", encoding="utf-8", newline=""), rows - 1)
    partial.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(fingerprint)
    writer = _Writer(partial.open("w", encoding="utf-8", newline=""), 0)
    writer.write(heading)
    return writer


def _whole_rows(partial: Path) -> tuple[int, int]:
    """Rows that end with a line break outside quotes, heading included, and the bytes that they take."""
    rows = end = read = quotes = 0
    for line in partial.read_bytes().split(b"\n")[:-1]:
        read += len(line) + 1
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            rows, end = rows + 1, read
    return rows, end


def _note(partial: Path) -> Path:
    return partial.with_name(partial.name + ".inputs")
