"""What makes a stage run again: an edit of anything small that it reads or made, whatever its size and time say."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.loading import make_run, write_run
from pipeline.run_folder import RunFolder
from pipeline.stage import Details, is_current, record, stage_named, stages_of
from tests.conftest import REPOSITORY

LORA_20B = REPOSITORY / "recipes" / "gpt_oss_20b_lora.py"


def edit(file: Path, old: str, new: str) -> None:
    """Another text of the same size and time."""
    status, text = file.stat(), file.read_text()
    assert old in text
    assert len(old) == len(new)
    file.write_text(text.replace(old, new))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run of a local model and a local table, each output one file."""
    model, table = tmp_path / "model", tmp_path / "tickets.csv"
    model.mkdir()
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors", "README.md"):
        (model / name).write_text("made of 150000")
    table.write_text("subject,body,queue\na,b,c\n")
    run = make_run(LORA_20B, [f"model.hf={model}", f"data.source={table}", "name=mine"], tmp_path / "runs")
    write_run(run)
    for stage in stages_of(run.recipe):
        stage.output(run).mkdir(parents=True, exist_ok=True)
        (stage.output(run) / "made").write_text(f"made by {stage.name}")
        record(stage, run, Details())
    assert stale(run) == set()
    return run


def stale(run: RunFolder) -> set[str]:
    return {stage.name for stage in stages_of(run.recipe) if not is_current(stage, run)}


AFTER_IMPORT = {"import", "finetune", "evaluate", "export"}
EDITS: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "the table": (lambda p: edit(p / "tickets.csv", "a,b,c", "a,b,d"), {"prepare", "finetune", "evaluate", "export"}),
    "config.json": (lambda p: edit(p / "model" / "config.json", "150000", "150001"), AFTER_IMPORT),
    "the chat template": (
        lambda p: edit(p / "model" / "chat_template.jinja", "150000", "150001"),
        AFTER_IMPORT | {"prepare"},
    ),
    "a weight": (lambda p: edit(p / "model" / "model.safetensors", "150000", "150001"), AFTER_IMPORT),
    "its readme": (lambda p: edit(p / "model" / "README.md", "150000", "150001"), set()),
    "an output": (lambda p: edit(p / "runs" / "mine" / "data" / "made", "by", "bx"), {"prepare"}),
    "a last output": (lambda p: edit(p / "runs" / "mine" / "exported" / "made", "by", "bx"), {"export"}),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_of_the_same_size_and_time(what: str, run: RunFolder, tmp_path: Path) -> None:
    change, expected = EDITS[what]
    change(tmp_path)
    assert stale(run) == expected


def test_the_turns_with_loss_are_of_the_prepared_data(run: RunFolder) -> None:
    data = replace(run.recipe.data, loss="all")
    other = RunFolder(run.path, replace(run.recipe, data=data))
    assert stale(other) == {"prepare", "finetune", "evaluate", "export"}


def test_a_copy_of_a_large_weight_is_the_same_model(run: RunFolder, tmp_path: Path) -> None:
    """Fetched again, it has another time; training does not begin anew for it."""
    from common import artifacts

    file = tmp_path / "model" / "model.safetensors"
    with file.open("wb") as large:
        large.truncate(artifacts.SMALL)
    for name in ("import", "finetune", "evaluate", "export"):
        record(stage_named(name), run, Details())
    assert stale(run) == set()
    os.utime(file, ns=(0, 0))
    assert stale(run) == set()
