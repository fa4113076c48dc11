"""What several test files share: the rehearsal, run once a session."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:  # threads of two processes on two cores wait for each other, spinning
    os.environ.setdefault("OMP_NUM_THREADS", "1")


LONGEST = ("end_to_end", "slurm", "training", "verification", "gpu_path", "converters", "serving")
"""Folders that take minutes: begun first, so that the two processes of `make test` end together; what the tests of one
share is run once, so one process takes it whole."""
ALONE = "test_sweep_of_six.py"
"""Takes minutes and shares nothing with its folder: the other process takes it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: [*LONGEST, item.path.parent.name].index(item.path.parent.name))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have the two processes of `make test` take the longest folders whole, and elsewhere one file after the other."""
    from xdist.scheduler import LoadScopeScheduling

    class Folders(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            folder = file.rpartition("/")[0]
            return folder if folder.endswith(LONGEST) and not file.endswith(ALONE) else file

    config.option.loadscopereorder = False  # which would begin with the folders of the most tests
    return Folders(config, log)


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    status: int
    out: str
    err: str


def nemo_run(*arguments: str | Path, cwd: Path, timeout: int = 600) -> Ran:
    """Run the command line in a process of its own, as a user would."""
    command = [sys.executable, "-m", "launch.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"}
    return run_to_its_end(command, cwd=cwd, env=environment, timeout=timeout)


def run_to_its_end(command: list[str], *, timeout: int, **settings: Any) -> Ran:
    """Run a command; in time or not, none of the processes that it started stays behind."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **settings
    )
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Ran(process.returncode, out, err)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


def wait_until(condition: Callable[[], bool], seconds: float, what: str = "what was waited for") -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.2)


@dataclass(frozen=True)
class Rehearsal:
    """A short run of the tiny recipe: every stage, few steps."""

    cwd: Path
    arguments: tuple[str, ...]
    first: Ran

    @property
    def run(self) -> Path:
        return self.cwd / "runs" / "tickets"

    def again(self) -> Ran:
        """The same command once more."""
        return nemo_run(*self.arguments, cwd=self.cwd)

    def before_finetuning(self, name: str) -> tuple[str, ...]:
        """Copy what stands before fine-tuning to the run `name`; the arguments that go on from there."""
        run = self.cwd / "runs" / name
        shutil.copytree(self.run, run, symlinks=True)
        for stage, folder in (("finetune", "finetune"), ("evaluate", "evaluation"), ("export", "exported")):
            (run / "stages" / f"{stage}.json").unlink()
            shutil.rmtree(run / folder)
        kept = [argument for argument in self.arguments if not argument.startswith(("name=", "trainer.max_steps="))]
        return (*kept, f"name={name}")


@pytest.fixture(scope="session")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    cwd = tmp_path_factory.mktemp("rehearsal")
    arguments = (
        "launch",
        str(REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py"),
        "name=tickets",
        "pretraining.max_steps=20",
        "trainer.max_steps=12",
        "evaluation.max_tickets=40",
    )
    return Rehearsal(cwd, arguments, nemo_run(*arguments, cwd=cwd))
