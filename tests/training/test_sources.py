"""`data.source=` takes tickets, conversations, or a folder that was prepared before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import DataError
from data_prep.options import PrepareOptions
from data_prep.preparation import prepare
from pipeline.loading import make_run
from pipeline.run_folder import RunFolder
from recipes.schema.recipe import TicketData
from stages.prepare import prepare_tickets
from tests.conftest import REPOSITORY
from tests.training.trainings import Done


@pytest.mark.slow
def test_conversations(trainings: dict[str, list[Done]]) -> None:
    """Trained on the last answer of each; not scored, since they have no labels; exported all the same."""
    (done,) = trainings["chat"]
    assert done.status == 0, done.out
    rows = [json.loads(line) for line in (done.run / "data" / "training.jsonl").read_text().splitlines()]
    assert all("How can I help you?" in row["input"] for row in rows)
    assert all(row["output"].startswith("<|channel|>final<|message|>Ask ") for row in rows)
    assert [row["step"] for row in done.history() if "loss" in row] == [1, 2]
    assert "evaluate: nothing: conversations have no labels to score" in done.out
    details = json.loads((done.run / "stages" / "export.json").read_text())["details"]
    assert "not compared with the model in training" in details["made"]
    assert (done.run / "exported" / "config.json").is_file()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before") / "tickets"
    prepare("sample", folder, PrepareOptions(instruction="Route the ticket."))
    report = json.loads((folder / "report.json").read_text())
    report["lengths"] = {"training": {"longest": 300.0}, "test": {"longest": 310.0}}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def run_on(source: Path, folder: Path, **fields: object) -> RunFolder:
    run = make_run(
        REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py",
        [f"data.source={source}", "pretraining=null", "data.packed=false"],
        folder,
    )
    data: TicketData = replace(run.recipe.data, **fields)  # type: ignore[arg-type]
    return replace(run, recipe=replace(run.recipe, data=data))


def test_a_prepared_folder_is_used_as_it_is(prepared: Path, tmp_path: Path) -> None:
    run = run_on(prepared, tmp_path, seq_length=512)
    assert "1,575 training" in prepare_tickets(run).made
    for name in ("training.jsonl", "validation.jsonl", "test.jsonl", "labels.json"):
        assert (run.data / name).read_bytes() == (prepared / name).read_bytes()


def test_the_turns_with_loss_are_asked_for_by_the_recipe(prepared: Path, tmp_path: Path) -> None:
    assert "1,575 training" in prepare_tickets(run_on(prepared, tmp_path, seq_length=512, loss="last")).made
    with pytest.raises(DataError, match="was prepared with loss on last: prepare it again with --loss all"):
        prepare_tickets(run_on(prepared, tmp_path / "all", seq_length=512, loss="all"))


def test_a_prepared_folder_that_does_not_fit(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds tickets of 310 tokens: set data\.seq_length=310, or prepare it with"):
        prepare_tickets(run_on(prepared, tmp_path / "short", seq_length=256))
    with pytest.raises(DataError, match=r"holds no sequences packed to 512 tokens: prepare it with --pack 512"):
        prepare_tickets(run_on(prepared, tmp_path / "unpacked", seq_length=512, packed=True))
