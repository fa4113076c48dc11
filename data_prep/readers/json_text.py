"""Values out of a long JSON text, one after the other: of lists, of documents in a row, of broken ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from common.values import one_line
from data_prep.readers.rows import Damaged

BLOCK = 1 << 18
LONGEST = 1 << 27
"""Characters of one ticket."""
WHOLE = 1 << 25
"""Characters up to which an object is read as it is; of a longer one the lists are read piece by piece."""
_BLANK = re.compile(r"[\s,\ufeff]*")
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_NESTING = re.compile(rf"{_STRING}|[{{}}\[\]]", re.DOTALL)
_SPARE_COMMA = re.compile(rf"({_STRING})|,(?=\s*+[}}\]])", re.DOTALL)
_DECODER = json.JSONDecoder(strict=False)  # line breaks in a string, as they come


class _TooLongError(Exception):
    """A value does not end within the length that was allowed."""


def parsed(text: str) -> Any:
    """A JSON value; a comma behind it or behind the last of its members is no matter.

    Raises:
        ValueError, RecursionError: it is no JSON, or too deep.
    """
    text = text.strip().removesuffix(",")
    try:
        return _DECODER.decode(text)
    except ValueError:
        spared = _SPARE_COMMA.sub(lambda match: match[1] or "", text)
        if spared == text:
            raise
        return _DECODER.decode(spared)


class JsonText:
    """A text that is read as far as needed."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._buffer, self._place = "", 0
        self._end = 0
        self._line = 1

    def values(self) -> Iterator[tuple[int, Any]]:
        """The values, or Damaged, with the lines where they begin; members of lists one by one."""
        while (start := self._next()) != "":
            if start == "]":
                self._skip(1)
            elif start == "[":
                self._skip(1)
                yield from self._members()
            else:
                yield from self._object_or_lists()

    def _members(self) -> Iterator[tuple[int, Any]]:
        while self._next() not in ("]", ""):
            yield self._member()

    def _object_or_lists(self) -> Iterator[tuple[int, Any]]:
        try:
            yield self._value(WHOLE)
            return
        except _TooLongError:
            self._skip(1)
        while self._next() == '"':
            line, key = self._member()
            if self._next(":") != "[":
                value = self._member()[1]
                if isinstance(key, Damaged) or isinstance(value, Damaged):
                    yield line, Damaged(line, self._line, "the page around the tickets is damaged")
                continue
            self._skip(1)
            yield from self._members()
            if self._next() == "]":
                self._skip(1)
        if self._next() == "}":
            self._skip(1)

    def _member(self) -> tuple[int, Any]:
        line = self._line
        try:
            return self._value(LONGEST)
        except _TooLongError:
            return line, self._damaged(line, f"longer than {LONGEST:,} characters")

    def _value(self, longest: int) -> tuple[int, Any]:
        """The value that begins here, and its line; Damaged where there is none.

        Raises:
            _TooLongError: it does not end within `longest` characters; nothing is taken.
        """
        line = self._line
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._place)
            except RecursionError:
                return line, self._damaged(line, "nested too deeply")
            except json.JSONDecodeError as error:
                if error.pos >= len(self._buffer) - 12 or error.msg.startswith("Unterminated"):
                    if len(self._buffer) - self._place >= longest:
                        raise _TooLongError from None
                    if self._fill():
                        continue
                return line, self._mended(line, f"not JSON ({one_line(error.msg, 80)})")
            self._skip(end - self._place)
            return line, value

    def _mended(self, line: int, reason: str) -> Any:
        """The value here without commas too many, else Damaged."""
        if self._has_end(LONGEST):
            try:
                value = parsed(self._buffer[self._place : self._end])
            except (ValueError, RecursionError):
                return self._damaged(line, reason)
            self._skip(self._end - self._place)
            return value
        return self._damaged(line, reason)

    def _damaged(self, line: int, reason: str) -> Damaged:
        """Go on behind the value that begins here; where it has no end, behind everything."""
        if self._has_end(LONGEST):
            self._skip(self._end - self._place)
        else:
            while self._fill():
                self._skip(len(self._buffer) - self._place)
            self._skip(len(self._buffer) - self._place)
        return Damaged(line, self._line, reason)

    def _has_end(self, longest: int) -> bool:
        """Whether the brackets of the value here are closed within `longest` characters; `_end` is behind them."""
        while True:
            depth = 0
            for match in _NESTING.finditer(self._buffer, self._place):
                depth += (match[0] in "{[") - (match[0] in "}]")
                if depth <= 0:
                    self._end = match.end() if depth == 0 else max(match.start(), self._place + 1)
                    return True
            if len(self._buffer) - self._place >= longest or not self._fill():
                return False

    def _next(self, beside: str = "") -> str:
        """The next character that is no blank and no comma, which stays; empty at the end."""
        while True:
            match = _BLANK.match(self._buffer, self._place)
            self._skip((match.end() if match else self._place) - self._place)
            if self._place < len(self._buffer):
                character = self._buffer[self._place]
                if character != beside:
                    return character
                self._skip(1)
            elif not self._fill():
                return ""

    def _skip(self, length: int) -> None:
        self._line += self._buffer.count("\n", self._place, self._place + length)
        self._place += length

    def _fill(self) -> bool:
        """Read on, by as much as is unread, so that a long value is looked at a few times only; False at the end."""
        wanted = max(BLOCK, len(self._buffer) - self._place)
        pieces, length = [], 0
        for line in self._lines:
            pieces.append(line)
            length += len(line)
            if length >= wanted:
                break
        self._buffer, self._place = "".join((self._buffer[self._place :], *pieces)), 0
        return bool(pieces)
