"""10,000 tables in every dialect and encoding are read as pandas reads them when it is told the dialect."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.sources import Row, open_source
from tests.data_prep.test_fuzz import folder  # noqa: F401  # a fixture

HEADING = ["subject", "body", "queue"]
SIGN = ("quotes", 'he said "no", so; then | and\tthere', "A")
PIECES = (
    "the printer", "does not", "work", "since monday", "größer", "принтер", "打印机", "プリンター", "C:\\new\\table",
    "CORP\\rsmith", 'he said "no"', "it's", '17" screen', "a, b", "c; d", "e | f", "g\th", "\n", "\n\n", "a\\nb", "\\",
    "<b>x</b>", "x@y.example", "2024-01-01, idle", "''", '""', " ",
)  # fmt: skip
bodies = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map(" ".join)
rows = st.lists(
    st.tuples(st.sampled_from(PIECES[:8]), bodies, st.sampled_from(["A", "B", "C d"])), min_size=8, max_size=30
)
dialects = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from([",", ";", "\t", "|"]),
        "lineterminator": st.sampled_from(["\n", "\r\n"]),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
        "escape": st.booleans(),
    }
)
encodings = st.sampled_from(
    ["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "cp1251", "gb18030"]
)


def written(
    table: list[tuple[str, str, str]], *, delimiter: str, lineterminator: str, quoting: int, escape: bool
) -> str:
    out = io.StringIO(newline="")
    how = {"doublequote": False, "escapechar": "\\"} if escape else {}
    writer = csv.writer(out, delimiter=delimiter, lineterminator=lineterminator, quoting=quoting, **how)  # type: ignore[arg-type]
    writer.writerows([HEADING, *table])
    return out.getvalue()


def by_pandas(text: str, *, delimiter: str, escape: bool) -> list[list[str]]:
    how: Any = {"doublequote": False, "escapechar": "\\"} if escape else {}
    frame = pd.read_csv(io.StringIO(text), sep=delimiter, dtype=str, keep_default_na=False, na_filter=False, **how)
    return frame.to_numpy().tolist()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_tables(folder: Path):  # noqa: F811
    run = _Run(folder / "t.csv")

    @settings(
        max_examples=10_000,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(rows, dialects, encodings)
    def compare(table, dialect, encoding):
        run.compare(table, dialect, encoding)

    compare()
    assert run.by_pandas > 9000


class _Run:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_pandas = 0

    def compare(self, table: list[tuple[str, str, str]], dialect: dict, encoding: str) -> None:
        if encoding in ("cp1251", "gb18030"):
            table = [tuple(_as_written(text, encoding) for text in row) for row in table]  # type: ignore[misc]
        if dialect["escape"]:  # else a file may have no sign of it: two backslashes are what they are
            table = [*table, SIGN]
        text = written(table, **dialect)
        self.path.write_bytes(text.encode(encoding))
        ours = list(self._rows(encoding))
        assert ours == [list(row) for row in table]
        theirs = by_pandas(text, delimiter=dialect["delimiter"], escape=dialect["escape"])
        self.by_pandas += 1
        assert ours == theirs

    def _rows(self, encoding: str) -> Iterator[list[str]]:
        named = encoding if encoding in ("cp1251", "gb18030") else None  # a few words tell no such encoding
        for row in open_source(self.path, named).rows(HEADING):
            assert isinstance(row, Row), row
            yield row.values


def _as_written(text: str, encoding: str) -> str:
    return text.encode(encoding, "replace").decode(encoding)
