"""Tables that csv and pandas read back as they went in; nobody's files; one writer at a time."""

from __future__ import annotations

import csv
import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import DataError, LaunchError
from serving.routed_table import companion_of, ensure_ours, escape_formula, write_table

HEADING = ["subject", "body", "routed_to"]
NASTY = [
    "a\rb",
    "\r",
    "\n",
    "a\r\nb",
    'say "x"',
    ",",
    "",
    " a ",
    "\t",
    "\u2028",
    "\x85",
    "\x0b",
    "\x1c",
    "\ufeff",
    "NA",
    "é\U0001f600",
]


def differs(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    return None if earlier == now else "model"


def interrupt_after(out: Path, rows: list[list[str]]) -> None:
    with pytest.raises(ZeroDivisionError), write_table(out, HEADING, {"model": 1}, differs) as table:  # noqa: PT012
        for row in rows:
            table.append(row)
        _ = 1 / 0


def write(out: Path, rows: list[list[str]], inputs: Mapping[str, Any] = {"model": 1}) -> None:
    with write_table(out, HEADING, inputs, differs) as table:
        for row in rows:
            table.append(row)


def read_by_csv(file: Path) -> list[list[str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.reader(lines))


def read_by_pandas(file: Path) -> list[list[str]]:
    frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    return [list(frame.columns), *frame.to_numpy().tolist()]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
@given(st.lists(st.lists(st.sampled_from(NASTY) | st.text(st.characters(codec="utf-8")), min_size=3, max_size=3)))
def test_every_row_reads_back_as_it_went_in(tmp_path: Path, rows: list[list[str]]) -> None:
    write(tmp_path / "r.csv", rows)
    rows = [[cell.replace("\0", "") for cell in row] for row in rows]  # the one character that pandas stops at
    assert read_by_csv(tmp_path / "r.csv") == [HEADING, *rows]
    assert read_by_pandas(tmp_path / "r.csv") == [HEADING, *rows]


@given(
    st.text() | st.sampled_from(["=1+1", "'=1", "''=", "+49 170", "-", "@a", "\tx", "\rx", "'", "-3.5", "+7", "1,000"])
)
def test_an_escaped_cell_is_no_formula_and_loses_nothing(cell: str) -> None:
    escaped = escape_formula(cell)
    if escaped != cell:
        assert escaped == "'" + cell
    elif cell and cell[0] in "=+-@\t\r":
        assert float(cell.replace(",", "")) is not None
    else:
        assert not cell.startswith("'=")


def test_a_stopped_table_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    interrupt_after(out, [["a", "b\nc", "d"], ["e", "f", "g"]])
    partial = tmp_path / "r.csv.partial"
    partial.write_bytes(partial.read_bytes() + b'h,"i\n')  # a kill within a row
    with write_table(out, HEADING, {"model": 1}, differs) as table:
        assert (table.rows, table.restarted) == (2, "")
        table.append(["h", "i", "j"])
    assert read_by_csv(out) == [HEADING, ["a", "b\nc", "d"], ["e", "f", "g"], ["h", "i", "j"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.csv", "r.csv.manifest.json"]
    manifest = json.loads(companion_of(out).read_text())
    assert manifest["inputs"] == {"model": 1}
    assert manifest["details"]["rows"] == 3


def test_other_inputs_begin_anew_and_say_so(tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    interrupt_after(out, [["a", "b", "c"]])
    with write_table(out, HEADING, {"model": 2}, differs) as table:
        assert (table.rows, table.restarted) == (0, "model")
        table.append(["d", "e", "f"])
    assert read_by_csv(out) == [HEADING, ["d", "e", "f"]]


def test_what_route_did_not_write_stays(tmp_path: Path) -> None:
    out = tmp_path / "budget.csv"
    out.write_text("precious")
    with pytest.raises(DataError, match="was not written by nemo-run route"):
        write(out, [])
    assert out.read_text() == "precious"
    out.unlink()
    write(out, [["a", "b", "c"]])
    write(out, [["d", "e", "f"]])  # ours: replaced
    assert read_by_csv(out)[1] == ["d", "e", "f"]
    out.write_text(out.read_text() + "my note,,\n")
    with pytest.raises(DataError, match="was changed since nemo-run route wrote it"):
        write(out, [])
    assert "my note" in out.read_text()


@pytest.mark.parametrize("name", ["r.csv.partial", "r.csv.partial.inputs", "r.csv.manifest.json"])
def test_files_beside_the_table_that_are_not_ours_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(DataError, match=f"{name} was not written by nemo-run route"):
        write(tmp_path / "r.csv", [])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_a_folder_and_a_link_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        ensure_ours(tmp_path / "folder")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="was not written by nemo-run route"):
        ensure_ours(tmp_path / "link")


def test_a_kill_between_companion_and_table_leaves_it_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "r.csv"
    write(out, [["a", "b", "c"]])
    with monkeypatch.context() as patched:
        patched.setattr("serving.routed_table.Path.replace", _interrupt_of("r.csv.partial"))
        with pytest.raises(KeyboardInterrupt):
            write(out, [["d", "e", "f"]])
    assert read_by_csv(out)[1] == ["a", "b", "c"]
    with write_table(out, HEADING, {"model": 1}, differs) as table:
        assert table.rows == 1
    assert read_by_csv(out)[1] == ["d", "e", "f"]


def _interrupt_of(name: str) -> Any:
    replace = Path.replace

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == name:
            raise KeyboardInterrupt
        return replace(path, target)

    return interrupted


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    with write_table(out, HEADING, {"model": 1}, differs) as table:
        table.append(["a", "b", "c"])
        with pytest.raises(LaunchError, match="another nemo-run route writes"):
            write(out, [["d", "e", "f"]])
        table.append(["g", "h", "i"])
    assert read_by_csv(out) == [HEADING, ["a", "b", "c"], ["g", "h", "i"]]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot be written \((Not a directory|File exists)\): mend that"):
        write(tmp_path / "file" / "r.csv", [])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a disk that is full after 1,000 bytes
    try:
        with pytest.raises(DataError, match=r"cannot be written \(File too large\).*rows that are written are kept"):
            write(tmp_path / "r.csv", [["a", "b" * 100, "c"]] * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with write_table(tmp_path / "r.csv", HEADING, {"model": 1}, differs) as table:
        assert table.rows == 9
