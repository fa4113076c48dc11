"""JSON: an object a line, lists, and the pages that help desks' interfaces answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path as File
from typing import Any

from common.errors import DataError
from common.values import one_line
from data_prep.readers.encodings import TextLines, find_encoding
from data_prep.readers.json_text import JsonText, parsed
from data_prep.readers.nested import Path, columns_of, look_up, tickets_in
from data_prep.readers.rows import Damaged, OtherReading, Row

PEEKED_ROWS = 1000
HEAD = 20
"""Lines by which a file of lines is told from a document."""


@dataclass
class JsonSource:
    """Objects of a JSON file, one a line or in lists; the columns are those of the first thousand."""

    path: File
    encoding: str | None = None
    name: str = field(init=False)
    columns: list[str] = field(init=False)
    remarks: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.name = str(self.path)
        encoding = find_encoding(self.path, self.encoding)
        self._lines = TextLines(self.path, encoding, encoding.line_ends[0])
        self._is_by_line = self._has_an_object_a_line()
        self._has_pages = False
        self._paths: dict[str, Path] = {}
        for _, item in islice(self._tickets(), PEEKED_ROWS):
            if isinstance(item, dict):
                for name, path in columns_of(item):
                    self._paths.setdefault(name, path)
        self.columns = list(self._paths)
        if not self.columns:
            raise DataError(f"{self.path} holds no JSON objects: write one a line, or a list of them.")
        self.remarks = [f"{self.name}: {encoding.remark}."] if encoding.remark else []

    @property
    def recoded(self) -> int:
        return self._lines.recoded

    def rows(self, names: Sequence[str]) -> Iterator[Row | Damaged]:
        paths = [self._paths[name] for name in names]
        for line, item in self._tickets():
            if isinstance(item, Damaged):
                yield item
            else:
                yield Row(line, [look_up(item, path) for path in paths])

    def read_by_another(self, names: Sequence[str]) -> OtherReading | None:
        """As pyarrow reads them, where each line is a ticket and the columns are not inside of others."""
        if not self._is_by_line or self._has_pages or any(len(self._paths[name]) > 1 for name in names):
            return None
        import pyarrow as pa

        return OtherReading(f"pyarrow {pa.__version__}", self._by_pyarrow(names))

    def _by_pyarrow(self, names: Sequence[str]) -> Iterator[Sequence[str]]:
        import pyarrow as pa
        import pyarrow.json as pj

        schema = pa.schema([(name, pa.string()) for name in names])
        block: list[str] = []

        def rows() -> Iterator[Sequence[str]]:
            table = pj.read_json(
                pa.BufferReader("".join(block).encode()),
                read_options=pj.ReadOptions(use_threads=False, block_size=max(1, 4 * sum(map(len, block)))),
                parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
            columns = [table.column(name).to_pylist() for name in names]
            yield from ([value or "" for value in values] for values in zip(*columns, strict=True))

        size = 0
        for line in self._lines:
            if line.strip():
                block.append(line)
                size += len(line)
            if size > 1 << 20:
                yield from rows()
                block, size = [], 0
        if block:
            yield from rows()

    def _has_an_object_a_line(self) -> bool:
        """Whether the first of several lines is JSON by itself, or no line begins a document."""
        lines = [line for line in islice(self._lines, HEAD) if line.strip() not in ("", "[", "]")]
        if len(lines) < 2:
            return False
        try:
            return isinstance(parsed(lines[0]), dict | list)
        except (ValueError, RecursionError):
            return next((isinstance(item, Damaged) for _, item in JsonText(self._lines).values()), True)

    def _tickets(self) -> Iterator[tuple[int, Any]]:
        """Objects or Damaged, with their lines."""
        for line, item in self._by_line() if self._is_by_line else JsonText(self._lines).values():
            if isinstance(item, Damaged):
                yield line, item
                continue
            items = item if isinstance(item, list) and _holds_objects(item) else [item]
            for each in items:
                yield from self._checked(line, each)

    def _checked(self, line: int, value: Any) -> Iterator[tuple[int, Any]]:
        if not isinstance(value, dict):
            yield line, Damaged(line, line, "not a JSON object")
            return
        for item in tickets_in(value, is_whole_file=not self._is_by_line):
            self._has_pages = self._has_pages or item is not value
            yield line, item if isinstance(item, dict) else Damaged(line, line, "not a JSON object")

    def _by_line(self) -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(self._lines, 1):
            if line.strip() in ("", "[", "]", ","):
                continue
            try:
                yield number, parsed(line)
            except (ValueError, RecursionError) as error:
                yield number, Damaged(number, number, f"not JSON ({one_line(error, 80)})")


def _holds_objects(items: list[Any]) -> bool:
    return any(isinstance(item, dict) for item in items)
