"""`nemo-run status` without a run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.run_status import Row, decisive
from pipeline.loading import make_run, write_run
from pipeline.sweep_folder import write_sweep
from tests.conftest import REPOSITORY


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_are_listed_newest_first(here: Path) -> None:
    for number, name in enumerate(("older", "newest", "oldest")):
        run = make_run(REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py", [f"name={name}"], here / "runs")
        write_run(run)
        changed = 1_000_000 + (50, 90, 10)[number]
        os.utime(run.path / "recipe.yaml", (changed, changed))
    (here / "runs" / "no-run").mkdir()
    (here / "runs" / "damaged").mkdir()
    (here / "runs" / "damaged" / "recipe.yaml").write_text("name: [")
    os.utime(here / "runs" / "damaged" / "recipe.yaml", (1, 1))
    told = CliRunner().invoke(app, ["status"])
    assert told.exit_code == 0, told.output
    rows = [line.split() for line in told.output.splitlines() if line.startswith("runs/")]
    assert [row[0] for row in rows] == ["runs/newest", "runs/older", "runs/oldest", "runs/damaged"]
    assert [row[3:6] for row in rows[:3]] == [["not", "started", "model"]] * 3
    assert "is not YAML" in told.output


def test_runs_of_a_sweep_stand_among_the_others(here: Path) -> None:
    folder = here / "runs" / "swept"
    write_sweep(folder, {}, {name: [] for name in ("lr-1e-3", "lr-4e-3")})
    for name in ("lr-1e-3", "lr-4e-3"):
        write_run(make_run(REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py", [f"name={name}"], folder))
    told = CliRunner().invoke(app, ["status"])
    assert sorted(re.findall(r"^runs/\S+", told.output, re.M)) == ["runs/swept/lr-1e-3", "runs/swept/lr-4e-3"]
    (folder / "sweep.yaml").write_text("points: [")
    told = CliRunner().invoke(app, ["status"])
    assert re.findall(r"^runs/\S+", told.output, re.M) == ["runs/swept"]
    assert told.exit_code == 0, told.output


def test_without_runs_the_next_command_is_named(here: Path) -> None:
    told = CliRunner().invoke(app, ["status"])
    assert str(told.exception) == ("there is no run in runs: nemo-run launch recipes/gpt_oss_tiny_lora.py makes one.")


@pytest.mark.parametrize(
    ("states", "stage"),
    [
        (("done", "running", "waiting"), "b"),
        (("done", "failed", "not started"), "b"),
        (("done", "waiting", "waiting"), "b"),
        (("done", "interrupted", "not started"), "b"),
        (("done", "done", "done"), "evaluate"),
    ],
)
def test_the_stage_that_says_how_far_a_run_is(states: tuple[str, ...], stage: str) -> None:
    rows = [Row(name, state) for name, state in zip(("a", "b", "evaluate"), states, strict=True)]
    assert decisive(rows).stage == stage
