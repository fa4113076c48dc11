"""All runs of a person, newest first: how far each is, and what it waits for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import NemoRunError
from launch import run_status, store
from launch.run_status import Row
from pipeline.run_folder import RECIPE_FILE, is_run
from pipeline.sweep_folder import is_sweep, runs_of_sweep

MOST = 20
"""Runs that are listed."""


@dataclass(frozen=True)
class ListedRun:
    """A run under the name by which the commands take it; `changed` is in seconds since the epoch."""

    name: str
    changed: float

    @property
    def row(self) -> Row:
        """The stage that says how far the run is; of a finished run its evaluation."""
        try:
            return run_status.decisive(run_status.of_run(self.name))
        except NemoRunError as error:
            return Row("", "unknown", note=str(error))


def listed_runs(folder: Path) -> list[ListedRun]:
    """The newest runs of a folder and of NeMo-Run's store, where runs on a cluster are known by their launches."""
    runs = {run.name: run for run in (*_launched(), *_lying_in(folder))}
    return sorted(runs.values(), key=lambda run: run.changed, reverse=True)[:MOST]


def _lying_in(folder: Path) -> Iterator[ListedRun]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_sweep(path):
            try:
                yield from (ListedRun(str(run), _changed(run)) for run in runs_of_sweep(path))
            except NemoRunError:  # which is said for its row
                yield ListedRun(str(path), _changed(path))
        elif is_run(path):
            yield ListedRun(str(path), _changed(path))


def _launched() -> Iterator[ListedRun]:
    """Runs of the newest launches that lie elsewhere: other folders of this machine, or a cluster's."""
    for experiment in store.newest_of_each_name()[:MOST]:
        launch = store.opened(experiment)
        if launch is None:
            continue
        if is_run(launch.run):
            yield ListedRun(_shortest(launch.run), _changed(launch.run))
        elif run_status.is_on_cluster(launch):
            yield ListedRun(launch.run.name, experiment.stat().st_mtime)


def _changed(run: Path) -> float:
    files = [run / RECIPE_FILE, *run.glob("stages/*"), *run.glob("logs/*")]
    return max((file.stat().st_mtime for file in files if file.exists()), default=run.stat().st_mtime)


def _shortest(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
