"""One rank killed or stopped in the middle of a training: noticed, started again, and the same to the last bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY, Rehearsal, nemo_run, wait_until

pytestmark = pytest.mark.slow

STEPS, EVERY = 16, 4
TRAINING = (
    f"trainer.max_steps={STEPS}",
    f"checkpoint.every_n_train_steps={EVERY}",
    f"trainer.val_check_interval={EVERY}",
    "hang_minutes=0.5",
)


def arguments(rehearsal: Rehearsal, name: str) -> tuple[str, ...]:
    """A run whose stages before fine-tuning are those of the rehearsal."""
    return (*rehearsal.before_finetuning(name), *TRAINING, "--only", "finetune", "cluster.retries=2")


@pytest.fixture(scope="module")
def whole(rehearsal: Rehearsal) -> Path:
    """An undisturbed run."""
    ran = nemo_run(*arguments(rehearsal, "whole"), cwd=rehearsal.cwd)
    assert ran.status == 0, ran.out + ran.err
    return rehearsal.cwd / "runs" / "whole"


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_rank_that_dies_or_hangs(fault: signal.Signals, rehearsal: Rehearsal, whole: Path) -> None:
    run = rehearsal.cwd / "runs" / fault.name.lower()
    launcher = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *arguments(rehearsal, run.name)],
        cwd=rehearsal.cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: len(rows(run)) > EVERY + 1, 300)
        os.kill(rank_of(run, 1), fault)
        out, _ = launcher.communicate(timeout=400)
    finally:
        launcher.kill()
        launcher.wait(timeout=30)
    assert launcher.returncode == 0, out
    assert "finetune: died, restart 1 of 2" in out
    assert rows(run) == rows(whole)
    assert adapter(run) == adapter(whole)
    status = nemo_run("status", run, cwd=rehearsal.cwd)
    assert "restarted 1×" in " ".join(status.out.split())
    wait_until(lambda: not ranks(run), 10)


def test_what_a_stage_says_itself_is_not_tried_again(rehearsal: Rehearsal) -> None:
    given = arguments(rehearsal, "wrong")
    (rehearsal.cwd / "runs" / "wrong" / "base" / "context" / "hf_config.json").write_text("{}")
    ran = nemo_run(*given, cwd=rehearsal.cwd)
    assert ran.status == 1
    assert "restart" not in ran.out + ran.err


def rows(run: Path) -> list[dict[str, float]]:
    """What each step computed."""
    file = run / "finetune" / "history.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [{name: row[name] for name in ("step", "loss", "val_loss", "grad_norm") if name in row} for row in lines]


def adapter(run: Path) -> dict[str, bytes]:
    from converters.storage.weights_reader import WeightsReader
    from pipeline.checkpoints import last_checkpoint

    reader = WeightsReader(last_checkpoint(run / "finetune") / "weights")
    return {key: reader.read(key).numpy().tobytes() for key in reader.tensors if ".adapter." in key}


def ranks(run: Path) -> dict[int, int]:
    """Process ids of the run's workers by rank."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if str(run) in line and "stages" in line and "RANK" in (environment := process.environ()):
            found[int(environment["RANK"])] = process.pid
    return found


def rank_of(run: Path, rank: int) -> int:
    return ranks(run)[rank]
