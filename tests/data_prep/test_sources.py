import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from common.errors import DataError
from data_prep.sources import Damaged, Row, open_source


def read(path: Path, *names: str) -> list[Row | Damaged]:
    return list(open_source(path).rows(names))


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_rows_with_their_lines_in_the_order_asked_for(tmp_path):
    path = write(tmp_path, "t.csv", 'subject,body,queue\nA,"one\ntwo, ""three""",X\n\n,four,Y\n')
    assert read(path, "queue", "body") == [Row(2, ["X", 'one\ntwo, "three"']), Row(5, ["Y", "four"])]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separator_is_found(tmp_path, separator):
    path = write(tmp_path, "t.csv", separator.join(("body", "queue")) + "\n" + separator.join(("a", "X")) + "\n")
    assert read(path, "body", "queue") == [Row(2, ["a", "X"])]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfbody,queue\ngr\xc3\xbc\xc3\x9fe,X\n",
        "body,queue\ngrüße,X\n".encode("utf-16"),
        "body,queue\ngrüße,X\n".encode("cp1252"),
    ],
)
def test_encodings(tmp_path, content):
    source = open_source(write(tmp_path, "t.csv", content))
    assert list(source.rows(["body"])) == [Row(2, ["grüße"])]
    assert source.recoded == (1 if b"\xfc" in content and content[:1] == b"b" else 0)


def test_damaged_rows_are_told_with_their_lines_and_the_next_rows_are_read(tmp_path):
    path = write(tmp_path, "t.csv", 'body,queue\n1,X\n2,X,more\n"3"x,X\n4,X\nshort\n5,X\n"cut off in the mid')
    rows = read(path, "body")
    assert [row.values[0] for row in rows if isinstance(row, Row)] == ["1", "4", "5"]
    assert [(row.line, row.last) for row in rows if isinstance(row, Damaged)] == [(3, 3), (4, 4), (6, 6), (8, 8)]
    assert next(row.reason for row in rows if isinstance(row, Damaged)) == "3 fields where the heading has 2"
    assert "unexpected end of data" in rows[-1].reason  # type: ignore[union-attr]


def test_an_open_quote_costs_the_rows_up_to_the_next_quote_and_says_which(tmp_path):
    path = write(tmp_path, "t.csv", 'body,queue\n"open,X\n2,X\n"3",X\n4,X\n')
    damaged, *rest = read(path, "body")
    assert isinstance(damaged, Damaged)
    assert (damaged.line, damaged.last) == (2, 4)
    assert rest == [Row(5, ["4"])]


def test_jsonl(tmp_path):
    lines = [
        json.dumps({"body": "a", "n": 3}),
        "",
        '{"body": "b", "tags": ["x", "é"], "gone": null}',
        "[1]",
        '{"body": "half',
        '{"body": "\\ud83d lone"}',
        "[" * 100_000,
    ]
    rows = read(write(tmp_path, "t.jsonl", "\n".join(lines)), "body", "n", "tags", "gone")
    assert rows[:2] == [Row(1, ["a", "3", "", ""]), Row(3, ["b", "", '["x", "é"]', ""])]
    assert [row.line for row in rows if isinstance(row, Damaged)] == [4, 5, 7]
    assert rows[4] == Row(6, ["\ufffd lone", "", "", ""])


def test_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"body": ["a", None, "ü"], "n": [1.0, float("nan"), 2.5], "queue": ["X", "Y", "Z"]}), path)
    assert read(path, "queue", "body", "n") == [
        Row(1, ["X", "a", "1.0"]), Row(2, ["Y", "", ""]), Row(3, ["Z", "ü", "2.5"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"\n\n\n", "has no heading"),
        ("t.docx", b"PK\x03\x04", "unknown kind"),
        ("t.xls", "\ufeff<html><table>", "a web page or XML by its content"),
        ("t.parquet", b"PAR1 not really", "cannot be read as Parquet"),
        ("t.jsonl", b"[1]\nnonsense\n", "holds no JSON objects"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        open_source(write(tmp_path, name, content))


@pytest.mark.parametrize("name", ["t.csv", "t.xls", "t.parquet", "t.txt"])
def test_a_spreadsheet_by_another_name(tmp_path, name):
    pd.DataFrame({"body": ["a"], "queue": ["X"]}).to_excel(tmp_path / "t.xlsx", index=False)
    (tmp_path / "t.xlsx").rename(tmp_path / name)
    assert read(tmp_path / name, "queue", "body") == [Row(2, ["X", "a"])]


@pytest.mark.parametrize("name", ["t.txt", "t.tab", "t.xls", "t.TXT.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lists_of_text_by_their_other_names(tmp_path, name, encoding):
    content = "body\tqueue\none\tX\ntwo, three\tY\n".encode(encoding)
    path = write(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content)
    assert read(path, "queue", "body") == [Row(2, ["X", "one"]), Row(3, ["Y", "two, three"])]


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"no ticket source.*nowhere\.csv"):
        open_source(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("kind", ["xlsx", "ods"])
def test_spreadsheets_are_read_as_text(tmp_path, kind):
    path = tmp_path / f"t.{kind}"
    rows = {"Subject": ["Né 007", ""], "Body": ["one\ntwo", "=1+1"], "ID": ["0012", "13"], "Queue": ["X", "N/A"]}
    with pd.ExcelWriter(path) as book:
        pd.DataFrame().to_excel(book, sheet_name="empty", index=False)
        pd.DataFrame(rows).map(lambda text: text.replace("=1", "'=1")).to_excel(book, sheet_name="tickets", index=False)
    source = open_source(path)
    assert source.columns == ["Subject", "Body", "ID", "Queue"]
    assert list(source.rows(["ID", "Subject", "Body", "Queue"])) == [
        Row(2, ["0012", "Né 007", "one\ntwo", "X"]),
        Row(3, ["13", "", "'=1+1", "N/A"]),
    ]


@pytest.mark.parametrize("content", [b"no zip", b"PK\x03\x04 half"])
def test_a_damaged_spreadsheet_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="cannot be read as a spreadsheet"):
        open_source(write(tmp_path, "t.xlsx", content))


def test_a_spreadsheet_without_rows_is_refused(tmp_path):
    pd.DataFrame({"body": []}).to_excel(tmp_path / "t.xlsx", index=False)
    with pytest.raises(DataError, match="no sheet with a heading and rows"):
        open_source(tmp_path / "t.xlsx")
