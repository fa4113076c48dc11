"""NeMo-Run's experiment store: the launches of a run, and what each stage's job is there."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import LaunchError

if TYPE_CHECKING:
    import nemo_run

LOCK = "launch.lock"


@dataclass(frozen=True)
class Job:
    """One stage of a launch: the executor's id of it, and the folder of its scripts and logs on this machine."""

    stage: str
    id: str
    folder: Path
    executor: Any


@dataclass(frozen=True)
class Launch:
    """One experiment of the store."""

    experiment: nemo_run.Experiment
    run: Path
    jobs: dict[str, Job]


def home() -> Path:
    """Where NeMo-Run keeps experiments; NEMORUN_HOME sets it."""
    from nemo_run.config import get_nemorun_home

    return Path(get_nemorun_home()) / "experiments"


def next_id(title: str) -> str:
    """The id of the next launch under this title: NAME_1, NAME_2, …"""
    taken = [_number(folder) for folder in (home() / title).glob(f"{title}_*")]
    return f"{title}_{max(taken, default=0) + 1}"


def last_launch(run: str | Path, stage: str | None = None) -> Launch | None:
    """The newest launch of a run: of the run folder where a path is given, else of that name.

    Args:
        stage: one that the launch ran; any by default.
    Raises:
        LaunchError: the store's entry cannot be read.
    """
    path = Path(run)
    title = path.name
    wanted = path.resolve() if "/" in str(run) or path.is_dir() else None
    for folder in sorted((home() / title).glob(f"{title}_*"), key=_number, reverse=True):
        launch = opened(folder)
        if launch is not None and wanted in (None, launch.run) and (stage is None or stage in launch.jobs):
            return launch
    return None


def _number(folder: Path) -> int:
    match = re.search(r"_(\d+)$", folder.name)
    return int(match[1]) if match else 0


def newest_of_each_name() -> list[Path]:
    """The entry of each name's newest launch, the newest first."""
    newest = (max(folder.glob(f"{folder.name}_*"), key=_number, default=None) for folder in home().glob("*"))
    return sorted((entry for entry in newest if entry), key=lambda entry: entry.stat().st_mtime, reverse=True)


def opened(folder: Path) -> Launch | None:
    """The launch of an entry of the store; None where it was killed before it was written.

    Raises:
        LaunchError: it needs a package that is not installed.
    """
    import fiddle as fdl
    import nemo_run
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    try:
        experiment = nemo_run.Experiment.from_id(folder.name)
    except (OSError, ValueError, AssertionError):
        return None
    except ImportError as error:
        raise LaunchError(f"{folder} needs a package that is not installed ({error}): install it.") from None
    jobs: dict[str, Job] = {}
    run = None
    for job in experiment.jobs:
        script: Any = fdl.build(ZlibJSONSerializer().deserialize(job.task))  # pyright: ignore
        run = Path(script.args[0])
        app = job.handle.partition("://")[2].split("/")
        jobs[job.id] = Job(job.id, app[1] if len(app) > 1 else "", Path(job.executor.job_dir), job.executor)
    return Launch(experiment, run, jobs) if run else None


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder while its stages run from this process.

    Raises:
        LaunchError: another process holds it.
    """
    with (run / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LaunchError(
                f"{run} is being launched by process {holder(run)}: wait for it, or nemo-run cancel {run}."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def holder(run: Path) -> int | None:
    """The process that runs stages of this run folder now, if any."""
    try:
        with (run / LOCK).open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read().strip() or 0) or None
    except (OSError, ValueError):
        pass
    return None
