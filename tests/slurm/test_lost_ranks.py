"""A rank of a two-node job that hangs, or is lost with its node: requeued, and the same to the last bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import Rehearsal, wait_until
from tests.end_to_end.test_faults import adapter, rows
from tests.slurm.conftest import Login, jobs_of

pytestmark = [pytest.mark.slow, pytest.mark.foreign, pytest.mark.timeout(1200)]
STEPS, EVERY = 8, 4
TRAINING = (
    f"trainer.max_steps={STEPS}",
    f"checkpoint.every_n_train_steps={EVERY}",
    f"trainer.val_check_interval={EVERY}",
    "trainer.num_nodes=2",
    "trainer.devices=1",
    "hang_minutes=0.5",
    "cluster.retries=2",
)


def submitted(login: Login, rehearsal: Rehearsal, name: str) -> tuple[str, Path]:
    """The job that fine-tunes what the rehearsal prepared, and its run."""
    _, recipe, *arguments = rehearsal.before_finetuning(name)
    launched = login.launch(
        Path(recipe), *arguments, *TRAINING, "--only", "finetune", "--runs", str(rehearsal.run.parent)
    )
    assert launched.status == 0, launched.err
    return jobs_of(launched)["finetune"], rehearsal.run.parent / name


def ended(login: Login, job: str) -> str:
    wait_until(
        lambda: login.cluster.state(job) not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"), 600, "the end"
    )
    return login.cluster.state(job)


def processes_of(login: Login, node: str, job: str) -> Iterator[psutil.Process]:
    """What runs of a job on a node of this cluster, Slurm's own processes included."""
    wanted = {"SLURMD_NODENAME": node, "SLURM_JOB_ID": job, **login.cluster.environment}
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if wanted.items() <= environment.items():
            yield process


def stop_rank(login: Login, job: str) -> None:
    # torchrun numbers its nodes in the order in which they come
    (rank,) = (each for each in processes_of(login, "n2", job) if "LOCAL_RANK" in each.environ())
    rank.send_signal(signal.SIGSTOP)


def lose_node(login: Login, job: str) -> None:
    """As at a power cut: the daemon and all that it started are gone at once. The node comes back a little later."""
    daemon = psutil.Process(int((login.cluster.folder / "run" / "slurmd.n2.pid").read_text()))
    steps = daemon.children(recursive=True)
    for process in [daemon, *steps, *processes_of(login, "n2", job)]:
        if process.is_running():
            process.kill()
    wait_until(lambda: login.cluster.state(job) != "RUNNING", 300, "the loss of the node")
    subprocess.run(["slurmd", "-N", "n2"], env={**os.environ, **login.cluster.environment}, check=True, timeout=60)


@pytest.fixture(scope="module")
def whole(login: Login, rehearsal: Rehearsal) -> Path:
    """An undisturbed run."""
    job, run = submitted(login, rehearsal, "undisturbed")
    assert ended(login, job) == "COMPLETED"
    return run


@pytest.mark.parametrize("lost", ["stopped", "node"])
def test_it_is_requeued_and_ends_the_same(lost: str, login: Login, rehearsal: Rehearsal, whole: Path) -> None:
    job, run = submitted(login, rehearsal, f"lost-{lost}")
    wait_until(lambda: len(rows(run)) > EVERY + 1, 300, "steps past a checkpoint")
    if lost == "node":
        lose_node(login, job)
    else:
        stop_rank(login, job)
    login.start_again(job)
    assert ended(login, job) == "COMPLETED", (run / "logs" / "finetune.log").read_text()[-3000:]
    assert rows(run) == rows(whole)
    assert adapter(run) == adapter(whole)
    shown = login.command("status", run).out
    # a busy machine may need longer than `hang_minutes` to begin once more
    assert re.search(r"restarted [12]×", " ".join(shown.split())), shown
    wait_until(lambda: not list(processes_of(login, "n2", job)), 30, "the end of all processes")
