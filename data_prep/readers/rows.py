"""What every reader of tickets gives: rows as text, and what it could not read with its lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Row:
    """One row: where it stands, and its values in the order that was asked for."""

    line: int
    values: list[str]


@dataclass(frozen=True)
class Damaged:
    """A row that cannot be read, by its first and last line."""

    line: int
    last: int
    reason: str


@dataclass(frozen=True)
class OtherReading:
    """The same rows by a reader that is not ours, which `name` names with its version."""

    name: str
    rows: Iterator[Sequence[str]]


class Source(Protocol):
    """A table of tickets.

    Attributes:
        columns: each name once; of columns with one name the first that is filled in a row is read.
        remarks: sentences on how the file was understood: its encoding, its dialect, what is odd.
    """

    name: str
    columns: list[str]
    remarks: list[str]

    @property
    def recoded(self) -> int:
        """Lines of the last reading that were not UTF-8 in a UTF-8 file."""
        ...

    def rows(self, names: Sequence[str]) -> Iterator[Row | Damaged]:
        """The rows with their values of the columns `names`; a value that is missing is empty."""
        ...

    def read_by_another(self, names: Sequence[str]) -> OtherReading | None:
        """The rows as pandas or pyarrow read them; None where neither reads this kind of file."""
        ...


@dataclass
class Rows:
    """Rows that are in memory already."""

    name: str
    items: Iterable[dict[str, str]]
    columns: list[str]
    remarks: list[str] = field(default_factory=list)
    recoded: int = 0

    def rows(self, names: Sequence[str]) -> Iterator[Row | Damaged]:
        for line, item in enumerate(self.items, 1):
            yield Row(line, [item[name] for name in names])

    def read_by_another(self, names: Sequence[str]) -> OtherReading | None:
        return None


def as_text(value: Any) -> str:
    """A cell as text; empty for None and NaN, JSON for lists and objects."""
    if isinstance(value, str):
        # JSON can spell half of a surrogate pair, which no encoding can write
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if value is None or value != value:  # NaN, which is what pandas writes for a missing text
        return ""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else str(value)


def without_nulls(value: Any) -> Any:
    """A value without the members that Arrow gives an object because another row's has them."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def first_filled(values: Sequence[str], places: Sequence[int]) -> str:
    """The value of a column, or of several columns with its name."""
    if len(places) == 1:
        return values[places[0]]
    return next((values[place] for place in places if values[place]), "")


def places_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Where each name stands, in the order of their first places."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return places


def repeated_columns(places: dict[str, list[int]]) -> list[str]:
    """A remark on every name that several columns have."""
    return [
        f"{len(several)} columns are named {name!r}: of each row the first that is filled is read."
        for name, several in places.items()
        if len(several) > 1
    ]
