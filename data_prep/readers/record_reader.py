"""The records of delimited text; a record that cannot be read costs itself, and no line of it becomes a record."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from common.values import one_line

LONGEST_FIELD = 1 << 27  # characters; the csv module holds a field in four bytes each while it reads it
UNFINISHED = "unexpected end of data"
_FAULTS = {  # of the csv module of Python 3.11 and of 3.13, whose remedy is one for programmers
    f"new-line character seen in unquoted field - do you need to open the file {how}?": "a line break outside of quotes"
    for how in ("in universal-newline mode", "with newline=''")
}


@dataclass(frozen=True)
class Dialect:
    """How a delimited file is written.

    Attributes:
        quote: what may surround a field, doubled inside it; None where quotes are text.
        escape: what takes away the meaning of the next delimiter, quote or line end; None where there is none.
        escapes_itself: whether `escape` is written twice where it is meant.
        line_end: `\\n`, which may follow `\\r`, or `\\r`.
    """

    delimiter: str
    quote: str | None = '"'
    escape: str | None = None
    escapes_itself: bool = False
    line_end: str = "\n"

    def __str__(self) -> str:
        name = {"\t": "tabs", ",": "commas", ";": "semicolons"}.get(self.delimiter, repr(self.delimiter))
        parts = [f"separated by {name}"]
        if self.quote != '"':
            parts.append(f"quoted by {self.quote}" if self.quote else "quotes are text")
        if self.escape:
            parts.append(f"escaped by {self.escape}")
        if self.line_end == "\r":
            parts.append("lines end with carriage returns")
        return ", ".join(parts)

    def csv_arguments(self) -> dict[str, Any]:
        """For the csv module and, by the same names, for pandas."""
        quoting = {"quoting": csv.QUOTE_NONE} if self.quote is None else {"quotechar": self.quote, "doublequote": True}
        return {"delimiter": self.delimiter, "escapechar": self.escape, **quoting}

    def for_csv(self, lines: Iterable[str]) -> Iterable[str]:
        """Lines in which only what this dialect escapes is escaped: the csv module drops every other backslash too."""
        if self.escape is None:
            return lines
        return (self._escaped(line) if self.escape in line else line for line in lines)

    def _escaped(self, line: str) -> str:
        escapable = {self.delimiter, self.quote, "\n", "\r", self.escape if self.escapes_itself else None}

        def meant(pair: re.Match[str]) -> str:
            return pair[0] if pair[1] in escapable else pair[0].replace("\\", "\\\\")

        return re.sub(r"\\(.|$)", meant, line, flags=re.DOTALL)


@dataclass(frozen=True)
class Record:
    """The fields of one record, or why it has none, and its first and last line."""

    first: int
    last: int
    fields: list[str]
    fault: str = ""


def records(lines: Iterable[str], dialect: Dialect, width: int = 0) -> Iterator[Record]:
    """Read records one after the other; blank lines are none.

    Args:
        width: fields of a record, by which the end of an unreadable one is told; 0: as many as the first has.
    """
    csv.field_size_limit(LONGEST_FIELD)
    feed = _Feed(dialect.for_csv(lines), dialect)
    # strict: a file cut off inside a quoted field, or with a stray quote, is an error and not a row
    reader = csv.reader(feed, strict=True, **dialect.csv_arguments())
    while True:
        feed.taken.clear()
        first = feed.line + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault = _FAULTS.get(str(error)) or one_line(error)
            if fault != UNFINISHED and not _ends_with_its_line(feed, width):
                _read_on(feed, width)
            if feed.ended and _was_never_quoted(feed, width):
                feed.give_back()
            yield Record(first, feed.line, [], fault)
            continue
        if fields:
            width = width or len(fields)
            yield Record(first, feed.line, fields)


class _Feed:
    """Lines for the csv module, with those that the current record has taken."""

    def __init__(self, lines: Iterable[str], dialect: Dialect) -> None:
        self._lines = iter(lines)
        self._ahead: deque[str] = deque()
        self.dialect = dialect
        self.taken: list[str] = []
        self.line = 0
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = self._ahead.popleft() if self._ahead else next(self._lines)
        except StopIteration:
            self.ended = True
            raise
        self.line += 1
        self.taken.append(line)
        return line

    def give_back(self) -> None:
        """All but the first line of the current record."""
        self._ahead.extendleft(reversed(self.taken[1:]))
        self.line -= len(self.taken) - 1
        self.ended = False

    def is_between_records(self) -> bool:
        """Whether the next quote of the file begins a field. If it ends one, this place is inside of that field."""
        quote, delimiter = self.dialect.quote or "", self.dialect.delimiter
        for line in chain(self._ahead, self._more()):
            place = line.find(quote)
            if place >= 0:
                return place == 0 or line[place - 1] == delimiter
        return True

    def _more(self) -> Iterator[str]:
        for line in self._lines:
            self._ahead.append(line)
            yield line


def _ends_with_its_line(feed: _Feed, width: int) -> bool:
    """Whether only one field is wrong, with text behind its second quote, and the record ends where its line does."""
    quote = feed.dialect.quote
    if quote is None:
        return True
    if len(feed.taken) > 1 or feed.taken[0].count(quote) > 2:
        return False
    return _count_fields(feed.taken[0], feed.dialect) == width and feed.is_between_records()


def _count_fields(line: str, dialect: Dialect) -> int:
    """The fields of a line whose quotes may stand anywhere; 0 where it cannot be read even so."""
    try:
        return len(next(csv.reader([line.rstrip("\r\n")], **dialect.csv_arguments()), []))
    except csv.Error:
        return 0


def _read_on(feed: _Feed, width: int) -> None:
    """Take lines up to the end of the record: a quote ends a field only where a delimiter or the line's end follows."""
    scan = _Scan(feed.dialect)
    for line in feed.taken:
        scan.take(line)
    while scan.is_open or scan.fields < width or not feed.is_between_records():
        line = next(feed, None)
        if line is None:
            return
        scan.is_open = True  # a field that ended too early goes on
        scan.take(line)


class _Scan:
    """Follows quotes that are not written by the rules, line by line."""

    def __init__(self, dialect: Dialect) -> None:
        quote, delimiter = re.escape(dialect.quote or ""), re.escape(dialect.delimiter)
        self._opening = re.compile(rf"(?:^|{delimiter}){quote}|{delimiter}")
        self._closing = re.compile(rf"\\.|{quote}{quote}|{quote}(?={delimiter}|[\r\n]*$)", re.DOTALL)
        self._quote = dialect.quote or ""
        self.fields = 1
        self.is_open = False

    def take(self, line: str) -> None:
        place: int | None = 0
        while place is not None:
            place = self._to_end_of_field(line, place) if self.is_open else self._to_next_field(line, place)

    def _to_end_of_field(self, line: str, place: int) -> int | None:
        match = self._closing.search(line, place)
        if match is None:
            return None
        self.is_open = match[0] != self._quote
        return match.end()

    def _to_next_field(self, line: str, place: int) -> int | None:
        match = self._opening.search(line, place)
        if match is None:
            return None
        self.is_open = match[0].endswith(self._quote)
        self.fields += not match[0].startswith(self._quote)
        return match.end()


def _was_never_quoted(feed: _Feed, width: int) -> bool:
    """Whether a quote that nothing closes up to the end of the file is a stray one in a line of its own.

    Its line has the right number of fields if quotes are text, and so have all records behind it. A file that does not
    end with a line's end was cut off, perhaps inside of that field.
    """
    dialect, (line, *rest) = feed.dialect, feed.taken
    if not rest or not rest[-1].endswith(("\n", "\r")) or _count_fields(line, replace(dialect, quote=None)) != width:
        return False
    try:
        return all(len(fields) in (0, width) for fields in csv.reader(rest, strict=True, **dialect.csv_arguments()))
    except csv.Error:
        return False
