"""Packed ticket files, and what is no file: nothing hangs, nothing fills the memory."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from common.errors import DataError
from data_prep.options import PrepareOptions
from data_prep.preparation import prepare
from data_prep.sample import sample_tickets
from data_prep.sources import Row, open_source
from tests.data_prep.test_prepare import write

CONTENT = b"body,queue\na,X\nb,Y\n"
ROWS = [Row(2, ["a", "X"]), Row(3, ["b", "Y"])]


def packed(folder: Path, kind: str, content: bytes = CONTENT) -> Path:
    path = folder / f"t.csv.{kind}"
    if kind == "gz":
        path.write_bytes(gzip.compress(content))
    elif kind == "zst":
        path.write_bytes(pa.compress(content, codec="zstd", asbytes=True))
    else:
        path = folder / "t.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("exports/t.csv", content)
            archive.writestr("__MACOSX/exports/._t.csv", b"\0\5")
            archive.writestr("README.txt", b"read me")
    return path


@pytest.mark.parametrize("kind", ["gz", "zst", "zip"])
def test_packed_tables_are_read(tmp_path, kind):
    assert list(open_source(packed(tmp_path, kind)).rows(["body", "queue"])) == ROWS


@pytest.mark.parametrize("kind", ["gz", "zst", "zip"])
def test_what_unpacks_to_far_more_than_its_size_is_refused(tmp_path, kind):
    path = packed(tmp_path, kind, b"body,queue\n" + b"a" * 100_000_000 + b",X\n")
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        open_source(path)


@pytest.mark.parametrize("kind", ["gz", "zst", "zip"])
def test_damaged_archives_are_refused(tmp_path, kind):
    path = packed(tmp_path, kind, CONTENT + bytes(range(32, 127)) * 500)
    path.write_bytes(path.read_bytes()[:-70])
    with pytest.raises(DataError, match="cannot be unpacked"):
        open_source(path)


def test_an_archive_of_several_tables_is_like_a_folder(tmp_path):
    tickets = sample_tickets(60)
    for name, part in (("a", tickets[:30]), ("b", tickets[30:])):
        write(tmp_path / f"{name}.csv", part)
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        for name in "ab":
            archive.write(tmp_path / f"{name}.csv", f"{name}.csv")
    options = PrepareOptions(split="1/0/0")
    assert prepare(tmp_path / "t.zip", tmp_path / "out", options).rows == 60
    assert prepare(tmp_path / "t.zip" / "b.csv", tmp_path / "b", options).rows == 30
    assert prepare(tmp_path / "t.zip", tmp_path / "a", PrepareOptions(split="1/0/0", file="a.csv")).rows == 30
    with pytest.raises(DataError, match=r"holds 2 \(a\.csv, b\.csv\): name one"):
        open_source(tmp_path / "t.zip")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(DataError, match="is no regular file"):
        prepare(tmp_path / "t.csv", tmp_path / "out")
    with pytest.raises(DataError, match="holds no file of the kinds"):
        prepare(tmp_path, tmp_path / "out")


def test_a_workbook_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", b" " * 100_000_000)
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        open_source(tmp_path / "t.xlsx")
