"""Which dialect a delimited file is written in, by the evidence of all its lines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from data_prep.readers.record_reader import Dialect, Record, records

DELIMITERS = ",;\t|^~\x01\x1f§¦"
QUOTES = "\"'"
HEAD = 50
"""Lines among which the heading is looked for, and the delimiters that it may have."""
QUOTED = 3
"""A field in usual quotes speaks against another way of quoting as much as so many lines that do not fit."""
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\r\n]*$', re.IGNORECASE)

Lines = Callable[[str], Iterable[str]]
"""Reads the file's lines from the beginning, by the line end that they have."""


@dataclass(frozen=True)
class Layout:
    """How a file is read, and where its heading stands.

    Attributes:
        before: records above the heading, such as a title; Excel's `sep=` line is among them.
        width: fields of a record.
        trailing: rows end with a delimiter more than the heading has.
    """

    dialect: Dialect
    heading: list[str]
    before: int
    trailing: bool = False

    @property
    def width(self) -> int:
        return len(self.heading)


@dataclass
class _Reading:
    """What one dialect makes of the file.

    Attributes:
        head: the first records that are not blank.
        widths, lines: records, and lines of them, by the number of their fields.
        ends: records whose last field is empty, by the number of their fields.
        faults, unreadable: records that cannot be read, and their lines.
        quotes: records with a field in quotes that are none in this dialect, or with a beginning or an end of one.
    """

    dialect: Dialect
    head: list[Record] = field(default_factory=list)
    widths: Counter[int] = field(default_factory=Counter)
    lines: Counter[int] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)
    faults: int = 0
    unreadable: int = 0
    quotes: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        lines, width = record.last - record.first + 1, len(record.fields)
        if record.fault:
            self.faults += 1
            self.unreadable += lines
            return
        if len(self.head) < HEAD:
            if not any(map(str.strip, record.fields)):
                return
            self.head.append(record)
        self.widths[width] += 1
        self.lines[width] += lines
        self.ends[width] += not record.fields[-1]
        if self.dialect.quote != '"':
            self.quotes.update({_quotes(text) for text in record.fields})

    @property
    def layout(self) -> Layout:
        """The heading is the first record with a second name: above it stand titles."""
        named = (place for place, record in enumerate(self.head) if self._is_heading(record))
        place = next(named, 0)
        heading = names_in(self.head[place].fields) if self.head else []
        longer = len(heading) + 1
        trailing = 2 * self.ends[longer] > self.widths[longer] > self.widths[len(heading)]
        return Layout(self.dialect, heading, place, trailing)

    def _is_heading(self, record: Record) -> bool:
        stated = _SEPARATOR_LINE.match(self.dialect.delimiter.join(record.fields))
        return stated is None and sum(bool(name.strip()) for name in record.fields) > 1

    @property
    def misfits(self) -> int:
        """Lines that the dialect does not explain; quotes that it says are none weigh as `QUOTED` lines each."""
        layout = self.layout
        fitting = self.lines[layout.width] + (self.ends[layout.width + 1] if layout.trailing else 0)
        quoted = self.quotes["whole"] + min(self.quotes["begin"], self.quotes["end"])
        return self.unreadable + sum(self.lines.values()) - fitting + QUOTED * quoted


def find_layout(lines: Lines, line_ends: Sequence[str]) -> Layout:
    """The first dialect that explains every line, else the one that explains most.

    Another way of quoting than the usual one must halve the lines that are left over.
    """
    delimiters, quote = _usual(lines, line_ends)
    best: _Reading | None = None
    for line_end in line_ends:
        for delimiter in delimiters:
            reading = _best_quoting(lines, Dialect(delimiter, quote, line_end=line_end))
            if best is None or _merit(reading) > _merit(best):
                best = reading
            if not best.misfits and best.layout.width > 1:
                return best.layout
    assert best is not None
    return best.layout


def _best_quoting(lines: Lines, usual: Dialect) -> _Reading:
    best = _read(lines, usual)
    if not best.misfits:
        return best
    for dialect in _other_quoting(best, lines):
        reading = _read(lines, dialect)
        if 2 * reading.misfits < best.misfits:
            best = reading
    return best


def names_in(fields: Iterable[str]) -> list[str]:
    """The names of columns in a heading; line breaks in its cells are blanks."""
    return [" ".join(name.split()) for name in fields]


def _merit(reading: _Reading) -> tuple[bool, int, int]:
    return reading.layout.width > 1, -reading.misfits, reading.layout.width


def _usual(lines: Lines, line_ends: Sequence[str]) -> tuple[list[str], str]:
    """Delimiters in the order of their number in the first lines, and the quote around the first names."""
    head = [line for line_end in line_ends for line in islice(filter(str.strip, lines(line_end)), HEAD)]
    stated = _SEPARATOR_LINE.match(head[0]) if head else None
    if stated:
        return [stated[1]], '"'
    first = head[0] if head else ""
    counts = {each: (first.count(each), sum(line.count(each) for line in head)) for each in DELIMITERS}
    delimiters = sorted((each for each in DELIMITERS if counts[each][1]), key=lambda each: counts[each], reverse=True)
    quote = next((each for each in QUOTES if first.startswith(each)), '"')
    return delimiters or [","], quote


def _other_quoting(usual: _Reading, lines: Lines) -> Iterator[Dialect]:
    """The ways of quoting that exports have beside the usual one, as far as the file has a sign of them."""
    dialect = usual.dialect
    delimiter, quote = re.escape(dialect.delimiter), dialect.quote or ""
    escaped = re.compile(rf"\\(?:{quote}|{delimiter}|\r?\n$)")
    apostrophes = re.compile(rf"(?:^|{delimiter})'.*'(?:{delimiter}|\s*$)")
    has_escapes = any(map(escaped.search, lines(dialect.line_end)))
    if has_escapes:
        yield replace(dialect, escape="\\")
    if quote == '"' and any(map(apostrophes.search, lines(dialect.line_end))):
        yield replace(dialect, quote="'")
        if has_escapes:
            yield replace(dialect, quote="'", escape="\\")
    if usual.faults > (dialect.delimiter != "\t"):  # tabs need no quotes
        yield replace(dialect, quote=None)
    if has_escapes:
        yield replace(dialect, quote=None, escape="\\")


def _read(lines: Lines, dialect: Dialect) -> _Reading:
    """Read the whole file in one dialect."""
    source = lines(dialect.line_end)
    if dialect.escape:
        dialect = replace(dialect, escapes_itself=_escapes_itself(source, dialect))
    reading = _Reading(dialect)
    for record in records(source, dialect):
        reading.add(record)
    return reading


def _quotes(text: str) -> str:
    """Which of its usual quotes a field has."""
    begins, ends = text.startswith('"'), len(text) > 1 and text.endswith('"')
    return "whole" if begins and ends else "begin" if begins else "end" if ends else ""


def _escapes_itself(lines: Iterable[str], dialect: Dialect) -> bool:
    """Whether every escape stands before a character that needs one: then two of them are one that is meant."""
    needed = re.escape(dialect.delimiter + (dialect.quote or "")) + r"\\\r\n"
    alone = re.compile(rf"\\(?:[{needed}]|$)")
    return all(line.count("\\") == 0 or alone.sub("", line).count("\\") == 0 for line in lines)
