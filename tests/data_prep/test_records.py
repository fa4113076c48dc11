"""Lines of a body never become tickets: records of delimited files, by dialects that the whole file speaks for."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from data_prep.readers.record_reader import LONGEST_FIELD
from data_prep.sources import Damaged, Row, open_source

HEADING = "subject,body,queue\n"
LOG = "\n".join(f"2024-01-{day:02}, worker {day}, state idle" for day in range(1, 9))


def read(folder: Path, content: str | bytes, name: str = "t.csv") -> tuple[list[list[str]], list[Damaged]]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    source = open_source(path)
    rows = list(source.rows(source.columns))
    return [row.values for row in rows if isinstance(row, Row)], [row for row in rows if isinstance(row, Damaged)]


def test_a_pasted_log_longer_than_the_csv_modules_limit_is_one_field(tmp_path):
    log = LOG * 2000
    assert len(log) > 2 * 131_072
    rows, damaged = read(tmp_path, f'{HEADING}a,"{log}",X\nb,c,Y\n')
    assert rows == [["a", log, "X"], ["b", "c", "Y"]]
    assert damaged == []


@pytest.mark.parametrize("escaped_last", [True, False])
def test_backslashes_that_escape_quotes_are_told_by_any_line_of_the_file(tmp_path, escaped_last):
    doubled = 'a,"say ""hi"", please",X\n' * 30
    escaped = f'b,"he said \\"hi\\", then\n{LOG}\nand \\"bye\\", so",Y\n'
    rows, damaged = read(tmp_path, HEADING + (doubled + escaped if escaped_last else escaped + doubled))
    assert damaged == []
    assert sorted(rows)[-1] == ["b", f'he said "hi", then\n{LOG}\nand "bye", so', "Y"]
    assert len(rows) == 31


def test_a_backslash_at_the_end_of_a_field_escapes_nothing_where_quotes_are_doubled(tmp_path):
    rows, damaged = read(tmp_path, HEADING + 'a,"C:\\dir\\",X\nb,"say ""hi""",Y\n')
    assert (rows, damaged) == ([["a", "C:\\dir\\", "X"], ["b", 'say "hi"', "Y"]], [])


def test_escaped_quotes_leave_other_backslashes_alone(tmp_path):
    rows, _ = read(tmp_path, HEADING + 'a,"\\"C:\\new\\table\\" and \\\\srv\\x, y",X\n' * 3)
    assert rows[0][1] == '"C:\\new\\table" and \\\\srv\\x, y'


def test_what_python_writes_with_an_escape_character_is_read_as_it_was(tmp_path):
    texts = ['a "quoted", text', "back\\slash \\n", 'both \\" and "\\', "line\nbreak, \\", "plain"]
    out = io.StringIO(newline="")
    writer = csv.writer(out, doublequote=False, escapechar="\\", quoting=csv.QUOTE_ALL)
    writer.writerows([["body", "queue"], *([text, "X"] for text in texts * 2)])
    rows, damaged = read(tmp_path, out.getvalue())
    assert (rows, damaged) == ([[text, "X"] for text in texts * 2], [])


def test_a_stray_quote_in_a_body_costs_its_record_and_none_of_its_lines_is_a_ticket(tmp_path):
    stray = f'b,"the 17" monitor, is broken\n{LOG}\nend, of, it",Y\n'
    rows, damaged = read(tmp_path, HEADING + "a,b,X\n" + stray + "c,d,X\n")
    assert rows == [["a", "b", "X"], ["c", "d", "X"]]
    assert [(each.line, each.last) for each in damaged] == [(3, 12)]


def test_a_stray_quote_that_nothing_closes_costs_its_line(tmp_path):
    rows, damaged = read(tmp_path, HEADING + "a,b,X\n" + 'b,"17 inch,X\n' + "c,d,Y\ne,f,X\n")
    assert rows == [["a", "b", "X"], ["c", "d", "Y"], ["e", "f", "X"]]
    assert [(each.line, each.last) for each in damaged] == [(3, 3)]


def test_of_a_file_cut_off_inside_of_a_body_no_line_is_a_ticket(tmp_path):
    rows, damaged = read(tmp_path, f'{HEADING}a,b,X\nb,"log, follows\n{LOG}')
    assert rows == [["a", "b", "X"]]
    assert [(each.line, each.reason) for each in damaged] == [(3, "unexpected end of data")]


def test_a_field_beyond_every_bound_costs_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.readers.record_reader.LONGEST_FIELD", 1000)
    rows, damaged = read(tmp_path, f'{HEADING}a,"{LOG * 20}",X\nb,c,Y\n')
    csv.field_size_limit(LONGEST_FIELD)
    assert rows == [["b", "c", "Y"]]
    assert [each.reason for each in damaged] == ["field larger than field limit (1000)"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "^", "~", "\x01", "\x1f", "§"])
@pytest.mark.parametrize("quote", ['"', "'"])
def test_delimiters_and_quotes(tmp_path, delimiter, quote):
    out = io.StringIO(newline="")
    rows = [["subject", "body", "queue"], *(["a", f"b{delimiter} c, d; e\n{quote}f{quote}", "X"] for _ in range(4))]
    csv.writer(out, delimiter=delimiter, quotechar=quote, quoting=csv.QUOTE_ALL).writerows(rows)
    assert read(tmp_path, out.getvalue()) == (rows[1:], [])


def test_tabs_with_quotes_that_are_text(tmp_path):
    lines = ["subject\tbody\tqueue", '17" screen\t"hello" said he\tX', 'b\t"never closed\tY', "c\td\tX", ""]
    rows, damaged = read(tmp_path, "\n".join(lines), "t.tsv")
    assert (rows, damaged) == ([line.split("\t") for line in lines[1:4]], [])


def test_what_mysql_writes(tmp_path):
    rows, damaged = read(tmp_path, "subject\tbody\tqueue\na\tline\\\nnext \\\t tab C:\\\\x\tX\nb\tc\tY\n", "t.tsv")
    assert (rows, damaged) == ([["a", "line\nnext \t tab C:\\x", "X"], ["b", "c", "Y"]], [])


@pytest.mark.parametrize("line_end", ["\r", "\n", "\r\n"])
def test_line_ends(tmp_path, line_end):
    lines = ["subject,body,queue", 'a,"b\nc",X', "d,e,Y", ""]
    assert read(tmp_path, line_end.join(lines)) == ([["a", "b\nc", "X"], ["d", "e", "Y"]], [])


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("sep=;\nsubject;body;queue\na, b;c;X\n", ["subject", "body", "queue"]),
        ('"sep=|"\nsubject|body|queue\na, b|c|X\n', ["subject", "body", "queue"]),
        ('subject,"body\ntext", queue \na,c,X\n', ["subject", "body text", "queue"]),
        ("\ufeff\n\nsubject,body,queue\na,c,X\n", ["subject", "body", "queue"]),
        ("Report of 2024\n\nsubject,body,queue\na,c,X\nd,e,Y\n", ["subject", "body", "queue"]),
        ("Report of 2024,,\nsubject,body,queue\na,c,X\n", ["subject", "body", "queue"]),
        ("subject,body,queue\na,c,X,\nd,e,Y,\n", ["subject", "body", "queue"]),
    ],
)
def test_headings(tmp_path, content, columns):
    (tmp_path / "t.csv").write_text(content)
    source = open_source(tmp_path / "t.csv")
    assert source.columns == columns
    first = next(iter(source.rows(columns)))
    assert isinstance(first, Row)
    assert [first.values[0][0], *first.values[1:]] == ["a", "c", "X"]


def test_of_columns_with_one_name_the_first_that_is_filled_is_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("subject,body,queue,body\na,b,X,bb\nc,,Y,dd\n")
    source = open_source(path)
    assert source.columns == ["subject", "body", "queue"]
    assert source.remarks == [f"{path}: 2 columns are named 'body': of each row the first that is filled is read."]
    assert list(source.rows(["body"])) == [Row(2, ["b"]), Row(3, ["dd"])]


def test_a_heading_in_the_middle_is_no_ticket(tmp_path):
    rows, damaged = read(tmp_path, HEADING + "a,b,X\n" + HEADING + "c,d,Y\n")
    assert rows == [["a", "b", "X"], ["c", "d", "Y"]]
    assert [each.reason for each in damaged] == ["the heading again"]
