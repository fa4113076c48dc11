"""10,000 mutated CSV and JSONL files: each is prepared or refused with a sentence, and no row is lost uncounted."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common.errors import ConfigurationError, DataError
from data_prep.options import PrepareOptions
from data_prep.preparation import prepare
from data_prep.prepare_report import PrepareReport
from data_prep.sample import sample_tickets

COLUMNS: tuple[str, ...] = ("subject", "body", "queue", "language")
SLOW_AND_LARGE = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
ROWS = [{name: row[name] for name in COLUMNS} for row in sample_tickets(12, seed=9)]
BLOCKS = (
    b'"', b"'", b"\n", b"\r", b"\r\n", b"\0", b",", b";", b"\t", b"\\", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\x85",
    b"{", b"}", b"[", b"[" * 5000, b"null", b"NaN", b"1e999", b'"\\ud800"', "\u2028\u202e\u0301".encode(), b"<b>&#0;",
    b"<|start|>", b"a" * 200_000, b'"a\nb"', b'{"queue": {}, "body": []}\n', b"queue", b"body", b",,,,,,", b"\n\n\n",
)  # fmt: skip


def csv_bytes(rows: list[dict[str, str]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def jsonl_bytes(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def mutated(content: bytes, mutations: list[tuple[str, int, int, int]]) -> bytes:
    for kind, where, length, what in mutations:
        at = where % (len(content) + 1)
        end = min(len(content), at + length)
        match kind:
            case "cut off":
                content = content[:at]
            case "remove":
                content = content[:at] + content[end:]
            case "repeat":
                content = content[:end] + content[at:end] * 3 + content[end:]
            case "insert":
                content = content[:at] + BLOCKS[what % len(BLOCKS)] + content[at:]
            case "flip" if at < len(content):
                content = content[:at] + bytes([content[at] ^ (1 << what % 8)]) + content[at + 1 :]
            case "recode":
                content = content.decode(errors="replace").encode(("utf-16", "cp1252", "utf-32")[what % 3], "replace")
    return content


mutations = st.lists(
    st.tuples(
        st.sampled_from(["cut off", "remove", "repeat", "insert", "insert", "flip", "recode"]),
        st.integers(0, 5000),
        st.integers(1, 300),
        st.integers(0, 1000),
    ),
    min_size=1,
    max_size=5,
)
chosen = st.fixed_dictionaries(
    {
        "strict": st.sampled_from([False, False, False, True]),
        "split": st.sampled_from(["0.8/0.1/0.1", "1/0/0", "0.5/0.25/0.25"]),
        "format": st.sampled_from(["harmony", "completion"]),
        "balance": st.sampled_from(["none", "cap", "oversample"]),
        "min_count": st.sampled_from([1, 3]),
        "label": st.sampled_from(["queue", "language"]),
    }
)


def written_rows(folder: Path) -> list[dict[str, str]]:
    lines = []
    for split in ("training", "validation", "test"):
        # what writes them in one go must read line by line as well, however a reader splits lines
        text = (folder / f"{split}.jsonl").read_text(encoding="utf-8")
        assert text.splitlines() == text.split("\n")[:-1]
        lines += text.splitlines()
    return [json.loads(line) for line in lines]


def prepared_or_refused(file: Path, out: Path, options: PrepareOptions) -> PrepareReport | str:
    try:
        return prepare(file, out, options)
    except (DataError, ConfigurationError) as error:
        return str(error)


def check(file: Path, content: bytes, options: dict[str, object]) -> None:
    out = file.parent / "out"
    file.write_bytes(content)
    outcome = prepared_or_refused(file, out, PrepareOptions(**options))  # type: ignore[arg-type]
    if isinstance(outcome, str):
        assert outcome.endswith(".")
        assert len(outcome) > 20
        assert sorted(path.name for path in file.parent.iterdir()) == [file.name]
        return
    report, rows = outcome, written_rows(out)
    assert report.rows == len(rows) - report.repeated + sum(report.dropped.values())
    assert sum(report.splits.values()) == len(rows)
    assert all(row["output"].startswith(row["label"].replace("<|", "< |")) for row in rows)
    assert len(report.damaged) == min(report.dropped.get("damaged", 0), 1000)
    assert all("line" in place for place in report.damaged)
    shutil.rmtree(out)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where there is such a place: each preparation flushes its files to disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("suffix", "render"), [("csv", csv_bytes), ("jsonl", jsonl_bytes)])
def test_five_thousand_mutated_files(folder: Path, suffix: str, render: Callable[[list[dict[str, str]]], bytes]):
    whole = render(ROWS)
    place = folder / suffix
    place.mkdir()

    @settings(max_examples=5000, deadline=None, database=None, derandomize=True, suppress_health_check=SLOW_AND_LARGE)
    @given(mutations, chosen)
    @example([("insert", 0, 1, 24)], {})
    @example([("cut off", len(whole) - 3, 1, 0)], {})
    def run(changes, options):
        check(place / f"tickets.{suffix}", mutated(whole, changes), options)

    run()


@given(st.lists(st.sampled_from(["good", "half", "list", "no label", "no text", "blank"]), max_size=30), st.randoms())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_line_is_accounted_for_by_its_kind(tmp_path: Path, kinds: list[str], draw: random.Random):
    """Another count than the report's own: of lines whose fate is known."""
    lines = {
        "good": lambda i: json.dumps({"body": f"ticket {i} {draw.random()}", "queue": "A"}),
        "half": lambda i: '{"body": "x',
        "list": lambda i: "[1, 2]",
        "no label": lambda i: json.dumps({"body": f"b {i}", "queue": " "}),
        "no text": lambda i: json.dumps({"body": "", "queue": "A"}),
        "blank": lambda i: "",
    }
    (tmp_path / "t.jsonl").write_text("\n".join(lines[kind](i) for i, kind in enumerate(["good", *kinds])))
    report = prepare(tmp_path / "t.jsonl", tmp_path / "out", PrepareOptions(split="1/0/0"))
    expected = {
        "damaged": kinds.count("half") + kinds.count("list"),
        "without label": kinds.count("no label"),
        "without text": kinds.count("no text"),
    }
    assert report.dropped == {reason: count for reason, count in expected.items() if count}
    assert report.splits == {"training": 1 + kinds.count("good"), "validation": 0, "test": 0}
    assert report.rows == 1 + len(kinds) - kinds.count("blank")
    numbers = [number for number, kind in enumerate(kinds, 2) if kind in ("half", "list")]
    assert [int(place.split(", line ")[1].split(":")[0]) for place in report.damaged] == numbers
