"""CSV, TSV and their relatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import DataError
from data_prep.readers.dialects import find_layout, names_in
from data_prep.readers.encodings import TextLines, find_encoding
from data_prep.readers.record_reader import Dialect, records
from data_prep.readers.rows import Damaged, OtherReading, Row, first_filled, places_of, repeated_columns


@dataclass
class CsvSource:
    """A delimited file, read by the dialect and the encoding that the whole of it speaks for."""

    path: Path
    encoding: str | None = None
    name: str = field(init=False)
    columns: list[str] = field(init=False)
    remarks: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.name = str(self.path)
        encoding = find_encoding(self.path, self.encoding)
        self._layout = find_layout(lambda line_end: TextLines(self.path, encoding, line_end), encoding.line_ends)
        self._lines = TextLines(self.path, encoding, self._layout.dialect.line_end)
        if not any(self._layout.heading):
            raise DataError(f"{self.path} has no heading: export it again, with the names of the columns.")
        self._places = places_of(self._layout.heading)
        self.columns = list(self._places)
        dialect = "" if self._layout.dialect in (Dialect(","), Dialect("\t")) else str(self._layout.dialect)
        understood = ", ".join(part for part in (encoding.remark, dialect) if part)
        self.remarks = [f"{self.name}: {understood}."] if understood else []
        self.remarks += [f"{self.name}: {remark}" for remark in repeated_columns(self._places)]

    @property
    def recoded(self) -> int:
        return self._lines.recoded

    def rows(self, names: Sequence[str]) -> Iterator[Row | Damaged]:
        layout, before = self._layout, 0
        places = [self._places[name] for name in names]
        heading: list[str] | None = None
        for record in records(self._lines, layout.dialect, layout.width):
            fields = record.fields
            if record.fault:
                yield Damaged(record.first, record.last, record.fault)
            elif heading is None:
                if any(map(str.strip, fields)):
                    heading = fields if before == layout.before else None
                    before += 1
            elif fields == heading:
                yield Damaged(record.first, record.last, "the heading again")
            elif len(fields) == layout.width or (
                layout.trailing and len(fields) == layout.width + 1 and not fields[-1]
            ):
                yield Row(record.first, [first_filled(fields, place) for place in places])
            else:
                reason = f"{len(fields)} fields where the heading has {layout.width}"
                yield Damaged(record.first, record.last, reason)

    def read_by_another(self, names: Sequence[str]) -> OtherReading | None:
        """As pandas reads the same lines."""
        import pandas as pd

        return OtherReading(f"pandas {pd.__version__}", self._by_pandas(names))

    def _by_pandas(self, names: Sequence[str]) -> Iterator[Sequence[str]]:
        import pandas as pd

        arguments: dict[str, Any] = self._layout.dialect.csv_arguments()
        if self._layout.dialect.line_end == "\r":
            arguments["lineterminator"] = "\r"
        chunks = pd.read_csv(
            _TextFile(self._layout.dialect.for_csv(self._lines)),  # type: ignore[arg-type]  # has what pandas calls
            header=None,
            names=range(self._layout.width + self._layout.trailing),
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            index_col=False,
            on_bad_lines="skip",
            chunksize=4096,
            engine="c",
            **arguments,
        )
        places = [self._places[name] for name in names]
        below = False  # the heading, and what stands above it
        for chunk in chunks:
            for values in chunk.itertuples(index=False, name=None):
                if below:
                    yield [first_filled(values, place) for place in places]
                else:
                    below = names_in(values[: self._layout.width]) == self._layout.heading


class _TextFile:
    """Lines as a file that can be read."""

    def __init__(self, lines: Any) -> None:
        self._lines = iter(lines)

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def read(self, size: int = -1) -> str:
        parts, length = [], 0
        while size < 0 or length < size:
            line = next(self._lines, None)
            if line is None:
                break
            parts.append(line)
            length += len(line)
        return "".join(parts)
