"""A run that is killed goes on where it stopped; a run whose settings changed does not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY, Rehearsal, nemo_run, wait_until

pytestmark = pytest.mark.slow

STEPS, EVERY = 30, 5
TRAINING = (
    f"trainer.max_steps={STEPS}",
    f"checkpoint.every_n_train_steps={EVERY}",
    f"trainer.val_check_interval={EVERY}",
)


@pytest.fixture(scope="module")
def arguments(rehearsal: Rehearsal) -> tuple[str, ...]:
    """A run whose stages before fine-tuning are those of the rehearsal."""
    return (*rehearsal.before_finetuning("killed"), *TRAINING)


def test_killed_while_it_trains(rehearsal: Rehearsal, arguments: tuple[str, ...]) -> None:
    run = rehearsal.cwd / "runs" / "killed"
    command = [sys.executable, "-m", "launch.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    launcher = subprocess.Popen(
        command, cwd=rehearsal.cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: last_step(run) >= EVERY + 2, seconds=300)
    finally:
        os.kill(launcher.pid, signal.SIGKILL)
        launcher.wait(timeout=30)
    wait_until(lambda: not processes_of(run), seconds=30)
    killed_at = last_step(run)
    assert EVERY < killed_at < STEPS

    again = nemo_run(*arguments, cwd=rehearsal.cwd)
    assert again.status == 0, again.out + again.err
    resumed = re.search(rf"finetune: resumed at step (\d+) of {STEPS}", again.out)
    assert resumed, again.out
    # the kill may have come while the checkpoint of its last step was being written
    assert int(resumed[1]) in (killed_at - killed_at % EVERY, killed_at - killed_at % EVERY - EVERY)
    rows = [json.loads(line) for line in (run / "finetune" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    assert json.loads((run / "stages" / "export.json").read_text())["details"]["largest_logit_difference"] <= 1e-3
    assert not processes_of(run)


def test_killed_between_the_last_step_and_its_record(rehearsal: Rehearsal, arguments: tuple[str, ...]) -> None:
    """The last checkpoint carries no optimizer: there is nothing to resume, and nothing left to train."""
    run = rehearsal.cwd / "runs" / "killed"
    before = (run / "finetune" / "history.jsonl").read_text()
    (run / "stages" / "finetune.json").unlink()
    again = nemo_run(*arguments, cwd=rehearsal.cwd)
    assert again.status == 0, again.out + again.err
    assert (run / "finetune" / "history.jsonl").read_text() == before


def test_other_settings_do_not_go_on_with_these_checkpoints(rehearsal: Rehearsal, arguments: tuple[str, ...]) -> None:
    run = rehearsal.cwd / "runs" / "killed"
    before = {path: path.stat().st_mtime_ns for path in (run / "finetune").rglob("*")}
    changed = nemo_run(*arguments, "optim.config.lr=3e-4", cwd=rehearsal.cwd)
    assert changed.status == 1
    assert "holds checkpoints of other settings" in changed.err
    assert "Traceback" not in changed.err
    assert {path: path.stat().st_mtime_ns for path in (run / "finetune").rglob("*")} == before


def test_a_finished_training_that_lost_a_file_is_made_again(rehearsal: Rehearsal, arguments: tuple[str, ...]) -> None:
    run = rehearsal.cwd / "runs" / "killed"
    next((run / "finetune").rglob("*.distcp")).unlink()
    again = nemo_run(*arguments, cwd=rehearsal.cwd)
    assert again.status == 0, again.out + again.err
    assert "files are missing from its output" in again.out
    assert (run / "finetune.damaged").is_dir()


def last_step(run: Path) -> int:
    try:
        rows = (run / "finetune" / "history.jsonl").read_text().splitlines()
        return max((json.loads(row)["step"] for row in rows), default=0)
    except (FileNotFoundError, ValueError):
        return 0


def processes_of(run: Path) -> list[str]:
    """Command lines of the processes that work for this run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(run) in line and process.pid != os.getpid():
            found.append(line)
    return found
