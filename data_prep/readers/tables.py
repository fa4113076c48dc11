"""Parquet files, saved data sets and spreadsheets."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.values import one_line
from data_prep.readers.features import class_names, with_names
from data_prep.readers.rows import (
    Damaged,
    OtherReading,
    Row,
    as_text,
    first_filled,
    places_of,
    repeated_columns,
    without_nulls,
)
from data_prep.readers.unpacked import HARMLESS, MOST_TIMES

BATCH = 1024


@dataclass
class ParquetSource:
    """A Parquet file, read in batches; classes by their names."""

    path: Path
    name: str = field(init=False)
    columns: list[str] = field(init=False)
    remarks: list[str] = field(init=False)
    recoded: int = 0

    def __post_init__(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.name = str(self.path)
        try:
            self._file = pq.ParquetFile(self.path)
            schema = self._file.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path} cannot be read as Parquet ({one_line(error)}): export it again.") from None
        self._places = places_of(schema.names)
        self._classes = class_names(schema.metadata)
        self.columns = list(self._places)
        self.remarks = [f"{self.name}: {remark}" for remark in repeated_columns(self._places)]

    def rows(self, names: Sequence[str]) -> Iterator[Row | Damaged]:
        import pyarrow as pa

        line = 0
        try:
            # pyarrow 21.0 finds no column by its name where two have it: those are read by their place
            once = all(len(self._places[name]) == 1 for name in self.columns)
            for batch in self._file.iter_batches(batch_size=BATCH, columns=list(names) if once else None):
                columns = [self._column(batch, name) for name in names]
                for values in zip(*columns, strict=True):
                    line += 1
                    yield Row(line, list(values))
        except (pa.ArrowException, OSError) as error:
            rows = self._file.metadata.num_rows
            yield Damaged(line + 1, rows, f"{rows - line} rows cannot be read ({one_line(error, 80)})")

    def read_by_another(self, names: Sequence[str]) -> OtherReading | None:
        return None

    def _column(self, batch: Any, name: str) -> list[str]:
        """The values of a batch's column, or of several with its name, as text."""
        places = [place for place, each in enumerate(batch.schema.names) if each == name]
        columns = [self._texts(batch.column(place), name) for place in places]
        return [first_filled(values, range(len(values))) for values in zip(*columns, strict=True)]

    def _texts(self, column: Any, name: str) -> list[str]:
        classes = self._classes.get(name)
        return [
            as_text(with_names(value, classes) if classes else without_nulls(value)) for value in column.to_pylist()
        ]


@dataclass
class SpreadsheetSource:
    """The first sheet with rows of an Excel or OpenDocument file; its first row is the heading, every cell is text."""

    path: Path
    name: str = field(init=False)
    columns: list[str] = field(init=False)
    remarks: list[str] = field(init=False)
    recoded: int = 0

    def __post_init__(self) -> None:
        import pandas as pd

        self.name = str(self.path)
        _ensure_small(self.path)
        try:
            # calamine reads all these kinds, and a workbook of 30,000 tickets in a tenth of openpyxl's time
            sheets = pd.read_excel(
                self.path,
                sheet_name=None,
                header=None,
                dtype=str,
                keep_default_na=False,
                na_filter=False,
                engine="calamine",
            )
        except Exception as error:  # python_calamine has a class of its own for each kind of file
            raise DataError(
                f"{self.path} cannot be read as a spreadsheet ({one_line(error, 120)}): save it again."
            ) from None
        for sheet in sheets.values():
            rows = [(line, values) for line, values in enumerate(sheet.itertuples(index=False, name=None), 1)]
            filled = [(line, values) for line, values in rows if any(map(str.strip, map(as_text, values)))]
            heading = _heading(filled)
            if len(filled) > heading + 1:
                break
        else:
            raise DataError(f"{self.path} has no sheet with a heading and rows: export it again.")
        self._rows = filled[heading + 1 :]
        names = [" ".join(as_text(name).split()) for name in filled[heading][1]]
        self._places = places_of(names)
        self.columns = [name for name in self._places if name]
        self.remarks = [
            f"{self.name}: {remark}" for remark in repeated_columns({n: self._places[n] for n in self.columns})
        ]

    def rows(self, names: Sequence[str]) -> Iterator[Row | Damaged]:
        places = [self._places[name] for name in names]
        for line, values in self._rows:
            yield Row(line, [as_text(first_filled(values, place)) for place in places])

    def read_by_another(self, names: Sequence[str]) -> OtherReading | None:
        return None


def _heading(rows: Sequence[tuple[int, Sequence[Any]]]) -> int:
    """Which row is the heading: the first with a second name; above it stand titles."""
    several = (
        place for place, (_, values) in enumerate(rows) if sum(bool(as_text(value).strip()) for value in values) > 1
    )
    return next(several, 0)


def _ensure_small(path: Path) -> None:
    """Refuse a workbook that unpacks to far more than its size; what is no archive is left to its reader."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return
    if size > max(HARMLESS, MOST_TIMES * path.stat().st_size):
        raise DataError(f"{path} unpacks to more than {MOST_TIMES} times its size: export it again as CSV.")
