"""Read the rows of a table file one after the other, as text; what cannot be read is reported with its line."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from common.errors import DataError
from common.values import one_line

SPREADSHEETS = (".xlsx", ".xls", ".ods")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", *SPREADSHEETS)
SEPARATORS = (",", ";", "\t", "|")
PEEKED_ROWS = 1000


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


class Source(Protocol):
    """A table of tickets; `rows` may be called once."""

    name: str
    columns: list[str]

    @property
    def recoded(self) -> int:
        """Lines so far that were not UTF-8 and were read as Windows-1252."""
        ...

    def rows(self, names: Sequence[str]) -> Iterator[Row | Damaged]:
        """The rows with their values of the columns `names`; a value that is missing is empty."""
        ...


def open_source(path: Path) -> Source:
    """The table in a file.

    Raises:
        DataError: no such file, an unknown kind, empty, or unreadable from its beginning.
    """
    if not path.is_file():
        raise DataError(f"there is no ticket source {path}: name a file, a folder, kaggle or sample.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: export it again.")
    match path.suffix.lower():
        case ".csv" | ".tsv":
            return CsvSource(path)
        case ".jsonl" | ".ndjson":
            return JsonlSource(path)
        case ".parquet":
            return ParquetSource(path)
        case ".xlsx" | ".xls" | ".ods":
            return SpreadsheetSource(path)
    raise DataError(f"{path} is of an unknown kind: {', '.join(SUFFIXES)} are read.")


@dataclass
class _Lines:
    """The lines of a text file: UTF-16 by its mark, else UTF-8, and Windows-1252 for a line that is not UTF-8."""

    path: Path
    recoded: int = 0

    def __iter__(self) -> Iterator[str]:
        with self.path.open("rb") as file:
            mark = file.read(3)
            if mark.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                with self.path.open(encoding="utf-16", errors="replace", newline="") as lines:
                    yield from lines
                return
            file.seek(3 if mark == codecs.BOM_UTF8 else 0)
            for line in file:
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError:
                    text = line.decode("cp1252", errors="replace")
                    self.recoded += 1
                yield text.replace("\0", "")


@dataclass
class CsvSource:
    """CSV or TSV; the separator is the one that gives the heading most columns."""

    path: Path
    name: str = field(init=False)
    columns: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.name = str(self.path)
        self._lines = _Lines(self.path)
        heading = next((line for line in self._lines if line.strip()), "")
        self._lines.recoded = 0
        parsed = {separator: _heading(heading, separator) for separator in SEPARATORS}
        self._separator = max(SEPARATORS, key=lambda separator: len(parsed[separator]))
        self.columns = [name.strip() for name in parsed[self._separator]]
        if not any(self.columns):
            raise DataError(f"{self.path} has no heading: export it again, with the names of the columns.")

    @property
    def recoded(self) -> int:
        return self._lines.recoded

    def rows(self, names: Sequence[str]) -> Iterator[Row | Damaged]:
        positions = [self.columns.index(name) for name in names]
        # strict: a file cut off inside a quoted field, or with a stray quote, is an error and not a row
        reader = csv.reader(self._lines, delimiter=self._separator, strict=True)
        heading = True
        while True:
            start = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Damaged(start, reader.line_num, one_line(error))
                continue
            if not values or (heading and not any(value.strip() for value in values)):
                continue
            if heading:
                heading = False
            elif len(values) != len(self.columns):
                reason = f"{len(values)} fields where the heading has {len(self.columns)}"
                yield Damaged(start, reader.line_num, reason)
            else:
                yield Row(start, [values[position] for position in positions])


def _heading(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return []


@dataclass
class JsonlSource:
    """One JSON object a line; the columns are the keys of the first thousand."""

    path: Path
    name: str = field(init=False)
    columns: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.name = str(self.path)
        self._lines = _Lines(self.path)
        self._parsed = self._objects()
        self._peeked = list(islice(self._parsed, PEEKED_ROWS))
        objects = (item for _, item in self._peeked if isinstance(item, dict))
        self.columns = list(dict.fromkeys(chain.from_iterable(objects)))
        if not self.columns:
            raise DataError(f"{self.path} holds no JSON objects: write one a line.")

    @property
    def recoded(self) -> int:
        return self._lines.recoded

    def rows(self, names: Sequence[str]) -> Iterator[Row | Damaged]:
        for line, item in chain(self._peeked, self._parsed):
            if isinstance(item, Damaged):
                yield item
            else:
                yield Row(line, [_text(item.get(name)) for name in names])

    def _objects(self) -> Iterator[tuple[int, dict[str, Any] | Damaged]]:
        for number, line in enumerate(self._lines, 1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, Damaged(number, number, f"not JSON ({one_line(error, 80)})")
                continue
            if isinstance(item, dict):
                yield number, item
            else:
                yield number, Damaged(number, number, "not a JSON object")


@dataclass
class ParquetSource:
    """A Parquet file, read in batches."""

    path: Path
    name: str = field(init=False)
    columns: list[str] = field(init=False)
    recoded: int = 0

    def __post_init__(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.name = str(self.path)
        try:
            self._file = pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path} cannot be read as Parquet ({one_line(error)}): export it again.") from None
        self.columns = list(self._file.schema_arrow.names)

    def rows(self, names: Sequence[str]) -> Iterator[Row | Damaged]:
        import pyarrow as pa

        line = 0
        try:
            for batch in self._file.iter_batches(batch_size=4096, columns=list(names)):
                columns = [batch.column(name).to_pylist() for name in names]
                for values in zip(*columns, strict=True):
                    line += 1
                    yield Row(line, [_text(value) for value in values])
        except (pa.ArrowException, OSError) as error:
            rows = self._file.metadata.num_rows
            yield Damaged(line + 1, rows, f"{rows - line} rows cannot be read ({one_line(error, 80)})")


@dataclass
class SpreadsheetSource:
    """The first sheet with rows of an Excel or OpenDocument file; its first row is the heading, every cell is text."""

    path: Path
    name: str = field(init=False)
    columns: list[str] = field(init=False)
    recoded: int = 0

    def __post_init__(self) -> None:
        import pandas as pd

        self.name = str(self.path)
        try:
            # calamine reads all these kinds, and a workbook of 30,000 tickets in a tenth of openpyxl's time
            sheets = pd.read_excel(
                self.path, sheet_name=None, dtype=str, keep_default_na=False, na_filter=False, engine="calamine"
            )
        except Exception as error:  # python_calamine has a class of its own for each kind of file
            raise DataError(f"{self.path} cannot be read as a spreadsheet ({one_line(error, 120)}).") from None
        filled = [sheet for sheet in sheets.values() if len(sheet)]
        if not filled:
            raise DataError(f"{self.path} has no sheet with a heading and rows: export it again.")
        self._sheet = filled[0]
        self.columns = [str(column) for column in self._sheet.columns]

    def rows(self, names: Sequence[str]) -> Iterator[Row | Damaged]:
        places = [self.columns.index(name) for name in names]
        for line, values in enumerate(self._sheet.itertuples(index=False, name=None), 2):
            yield Row(line, [_text(values[place]) for place in places])


@dataclass
class Rows:
    """Rows that are in memory already."""

    name: str
    items: Iterable[dict[str, str]]
    columns: list[str]
    recoded: int = 0

    def rows(self, names: Sequence[str]) -> Iterator[Row | Damaged]:
        for line, item in enumerate(self.items, 1):
            yield Row(line, [item[name] for name in names])


def _text(value: Any) -> str:
    if isinstance(value, str):
        # JSON can spell half of a surrogate pair, which no encoding can write
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if value is None or value != value:  # NaN, which is what pandas writes for a missing text
        return ""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else str(value)
