"""`nemo-run prepare` as its user types it: what it prints, and what bad input is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data_prep.preparation import prepare as prepare_tickets
from tests.conftest import Ran, nemo_run

pytestmark = pytest.mark.slow
GOOD = "subject,body,queue,language\n" + "".join(
    f"s{i},ticket number {i} about w{i * 7},{'AB'[i % 2]},en\n" for i in range(60)
)


def prepare(folder: Path, *arguments: str | Path) -> Ran:
    return nemo_run("prepare", *arguments, "--out", "out", cwd=folder, timeout=120)


def refused(ran: Ran, folder: Path, *words: str) -> None:
    assert ran.status == 1, ran.out
    assert "Traceback" not in ran.err
    assert all(word in ran.err for word in words), ran.err
    by_typer = "─ Error ─" in ran.err
    assert by_typer or len([line for line in ran.err.splitlines() if line.startswith("error: ")]) == 1
    assert not [path.name for path in folder.iterdir() if path.name.startswith("out")]


def test_a_whole_run_says_what_it_wrote_and_the_next_that_it_is_current(tmp_path):
    (tmp_path / "t.csv").write_text(GOOD + 'x,"cut')
    ran = prepare(tmp_path, "t.csv")
    assert ran.status == 0, ran.err
    assert "61 rows" in ran.out
    assert re.search(r"damaged: .*t\.csv, line 62: unexpected end of data", ran.out)
    assert re.search(r"wrote out in \d+\.\d s; read out/report\.html", ran.out)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "labels.json", "manifest.json", "report.html", "report.json", "splits.csv",
        "test.jsonl", "training.jsonl", "validation.jsonl",
    ]  # fmt: skip
    again = prepare(tmp_path, "t.csv")
    assert again.status == 0
    assert "out is current: 61 rows: 48 training, 6 validation, 6 test; dropped 1 damaged" in again.out


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        (GOOD, ["--label", "kind"], ["no column 'kind' for the label", "subject, body, queue, language", "--label"]),
        (GOOD, ["--body", "text"], ["no column 'text' for the body", "--body"]),
        (GOOD, ["--skip", "hmtl"], ["no cleaning rule 'hmtl'", "html"]),
        (GOOD, ["--split", "0.9/0.2/0.1"], ["0.9/0.2/0.1", "sum to 1"]),
        (GOOD, ["--balance", "most"], ["balance is 'most'", "cap"]),
        (GOOD, ["--max-length", "64"], ["name a tokenizer"]),
        (GOOD, ["--frozen", "nowhere"], ["nowhere holds no splits.csv"]),
        (GOOD, ["--tokenizer", "./nowhere"], ["./nowhere has no tokenizer"]),
        (GOOD, ["--seed", "many"], ["--seed", "integer"]),
        (GOOD, ["--min-count", "100"], ["no label has 100 tickets, the most have 30", "min_count"]),
        ('x\n"a', ["--strict"], ["no column 'queue'"]),
        (GOOD + 'x,"cut', ["--strict"], ["t.csv, line 62", "mend it"]),
        ("\x00\x01\x02PNG", [], ["t.csv"]),
        ("body,queue\n,A\n", [], ["1 without text"]),
    ],
)
def test_bad_input(tmp_path, content, arguments, words):
    (tmp_path / "t.csv").write_text(content)
    refused(prepare(tmp_path, "t.csv", *arguments), tmp_path, *words)


def test_sources_that_are_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(prepare(tmp_path, "empty"), tmp_path, "empty holds no file of the kinds .csv")
    refused(prepare(tmp_path, "nowhere.parquet"), tmp_path, "there is no ticket source nowhere.parquet")
    (tmp_path / "t.docx").write_bytes(b"PK")
    refused(prepare(tmp_path, "t.docx"), tmp_path, "unknown kind", ".jsonl")


def test_a_million_rows_are_not_needed_to_see_progress(tmp_path):
    """Every step tells how far it is."""
    (tmp_path / "t.csv").write_text(GOOD)
    seen: dict[str, tuple[int, int | None]] = {}
    prepare_tickets(
        tmp_path / "t.csv", tmp_path / "out", progress=lambda at: seen.update({at.step: (at.done, at.total)})
    )
    assert seen["reading t.csv"] == (60, 60)
    assert seen["comparing tickets"] == (60, 60)
    assert {step for step in seen if step.startswith("writing")} == {
        "writing training", "writing validation", "writing test",
    }  # fmt: skip


def test_the_documented_options_work_together(tmp_path, tokenizer_folder):
    (tmp_path / "t.csv").write_text(GOOD)
    ran = prepare(
        tmp_path, "t.csv", "--label", "queue", "--format", "completion", "--balance", "oversample", "--seed", "3",
        "--tokenizer", tokenizer_folder, "--max-length", "300", "--pack", "1024", "--instruction", "Pick {labels}",
        "--near-duplicates", "0.9", "--min-count", "2", "--rest", "Other", "--skip", "html", "--too-long", "drop",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    row = json.loads((tmp_path / "out" / "training.jsonl").read_text().splitlines()[0])
    assert row["input"].startswith("Pick A, B\n\n")
    assert row["output"] == row["label"] + "<|return|>"
    assert (tmp_path / "out" / "packed" / "training_1024.npy").is_file()
