"""Six short runs of a sweep: killed in the middle, finished by the same command, compared."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.history import read_history
from pipeline.sweep_folder import runs_of_sweep
from tests.conftest import REPOSITORY, nemo_run, wait_until
from tests.end_to_end.test_interruption import processes_of

pytestmark = pytest.mark.slow

SWEEP = (
    "launch",
    str(REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py"),
    "name=six",
    # as little as shows it: one process, short prompts, few steps
    "trainer.devices=1",
    "trainer.strategy.expert_model_parallel_size=1",
    "model.toy.num_hidden_layers=2",
    "data.seq_length=512",
    "pretraining.max_steps=4",
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "trainer.limit_val_batches=1",
    "checkpoint.every_n_train_steps=3",
    "evaluation.max_tickets=20",
    "--until",
    "evaluate",
    "--sweep",
    "optim.config.lr=1e-3,4e-3",
    "--sweep",
    "peft.dim=2,4,8",
)
NAMES = [f"lr-{lr}_dim-{dim}" for lr in ("1e-3", "4e-3") for dim in (2, 4, 8)]
SHARED = ("model", "prepare", "import", "pretrain")


def test_six_runs_killed_in_the_middle_finished_and_compared(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "six"
    launcher = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *SWEEP],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    third = folder / NAMES[2] / "finetune"
    try:
        wait_until(lambda: bool(read_history(third)) or launcher.poll() is not None, seconds=500)
    finally:
        os.kill(launcher.pid, signal.SIGKILL)
        launcher.wait(timeout=30)
    wait_until(lambda: not processes_of(folder), seconds=30)
    done = {path: path.stat().st_mtime_ns for name in NAMES[:2] for path in (folder / name / "stages").iterdir()}
    assert {path.stem for path in done} == {*SHARED, "finetune", "evaluate"}
    shown = nemo_run("status", "runs/six", cwd=tmp_path)
    states = [line.split()[:2] for line in shown.out.splitlines()[1:]]
    assert states[:2] == [[name, "done"] for name in NAMES[:2]], shown.out
    assert states[3:] == [[name, "not"] for name in NAMES[3:]]

    again = nemo_run(*SWEEP, cwd=tmp_path)
    assert again.status == 0, again.out + again.err
    assert {path: path.stat().st_mtime_ns for path in done} == done
    ran = dict(re.findall(r"^(lr-\S+) \(\d of 6\): (.*)$", again.out, re.M))
    assert ran.pop(NAMES[2]) in ("finetune, evaluate", "evaluate"), "killed in the middle, or at its end"
    tail = dict.fromkeys(NAMES[3:], "finetune, evaluate")
    assert ran == dict.fromkeys(NAMES[:2], "current, skipped") | tail, "what all share was made once"
    shown = nemo_run("status", "runs/six", cwd=tmp_path)
    assert [line.split()[:2] for line in shown.out.splitlines()[1:]] == [[name, "done"] for name in NAMES]
    for path in runs_of_sweep(folder):
        assert [row["step"] for row in read_history(path / "finetune") if "loss" in row] == list(range(1, 7))
    links = [(folder / name / "base").is_symlink() for name in NAMES]
    assert links == [False, True, True, True, True, True]

    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    compared = nemo_run("compare", elsewhere, cwd=tmp_path)
    assert compared.status == 0, compared.err
    with (elsewhere / "comparison" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == NAMES
    for row in rows:
        run = elsewhere / row["run"]
        figures = json.loads((run / "evaluation" / "metrics.json").read_text())["systems"]["tuned"]["metrics"]
        assert float(row["macro_f1"]) == figures["macro_f1"]
        history = read_history(run / "finetune")
        assert int(row["tokens"]) == sum(each.get("tokens", 0) for each in history)
        assert float(row["validation_loss"]) == min(each["val_loss"] for each in history if "val_loss" in each)
        assert float(row["relative_change"]) > 0
    changed = [float(row["relative_change"]) for row in rows]
    assert min(changed[3:]) > max(changed[:3]), "a learning rate of four times moves the weights further"
    assert (elsewhere / "comparison" / "comparison.html").stat().st_size > 10_000
