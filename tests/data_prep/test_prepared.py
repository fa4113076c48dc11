import json
from pathlib import Path

import pytest

from common.errors import DataError
from data_prep.prepared import Ticket, load_prepared
from tests.evaluation.conftest import LABELS, write_prepared


def test_reads_every_field(tmp_path: Path) -> None:
    prepared = load_prepared(write_prepared(tmp_path / "data"))
    assert prepared.labels == LABELS
    assert prepared.completions["Sales"] == "Sales<|return|>"
    assert [len(split) for split in (prepared.training, prepared.validation, prepared.test)] == [60, 6, 18]
    first = prepared.test[0]
    assert isinstance(first, Ticket)
    assert (first.id, first.label, first.language, first.output) == ("2-0", "IT", "en", "IT<|return|>")
    assert first.text.startswith("Hello, ")
    assert first.input.endswith("<|message|>")


def test_a_line_separator_inside_a_ticket_does_not_end_the_row(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "data")
    row = json.loads((folder / "test.jsonl").read_text().splitlines()[0]) | {"ticket": "one\u2028two\x85three"}
    (folder / "test.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [ticket.text for ticket in load_prepared(folder).test] == ["one\u2028two\x85three"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels.json", None, "holds no labels.json"),
        ("labels.json", "{", "labels.json is damaged"),
        (
            "labels.json",
            '{"labels": [{"label": "IT", "completion": "IT"}]}',
            "labels that labels.json lacks",
        ),
        ("training.jsonl", None, "training.jsonl is missing"),
        ("test.jsonl", "", "test.jsonl is empty"),
        ("test.jsonl", '{"input": "x"}\n', "test.jsonl, line 1, is damaged"),
    ],
)
def test_says_what_is_wrong_with_the_folder(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    folder = write_prepared(tmp_path / "data")
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    with pytest.raises(DataError, match=message):
        load_prepared(folder)
