"""A sweep's folder: the runs of one recipe at several points, each a run folder of its own, and what they share.

`sweep.yaml` says what was swept and lists the points in order. A stage that is the same at several points is made by
one of them; at the others its output and its record are relative links to that run's, so that each run is whole by its
own path, and a moved sweep still is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common import artifacts
from common.errors import ConfigurationError
from common.values import one_line
from pipeline.resume import begun_note
from pipeline.run_folder import RunFolder, is_run
from pipeline.stage import STAGES, Stage, fingerprint_of, is_current, record_of, stage_named, stages_of

SWEEP_FILE = "sweep.yaml"


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / SWEEP_FILE).is_file()


def title_of(run: Path) -> str:
    """What services call a run: its folder's name, behind that of its sweep."""
    return f"{run.parent.name}/{run.name}" if is_sweep(run.parent) else run.name


def write_sweep(folder: Path, about: Mapping[str, Any], points: Mapping[str, Sequence[str]]) -> None:
    """Note what is swept, and each point's name with its overrides; points of an earlier launch stay listed.

    Raises:
        ConfigurationError: the folder holds files and is no sweep's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _read(folder)["points"] if is_sweep(folder) else {}
    if not is_sweep(folder) and (others := [path.name for path in folder.iterdir() if path.suffix != ".tmp"]):
        raise ConfigurationError(
            f"{folder} holds {min(others)} and no {SWEEP_FILE}: it is no sweep, choose another name= or --runs."
        )
    tree = {**about, "points": {**earlier, **{name: list(overrides) for name, overrides in points.items()}}}
    artifacts.write_text(folder / SWEEP_FILE, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120))


def last_stage_of(folder: Path) -> str:
    """The stage with which a run of the sweep is done, as it was last launched.

    Raises:
        ConfigurationError: sweep.yaml is damaged.
    """
    return _read(folder).get("until", STAGES[-1].name)


def runs_of_sweep(folder: Path) -> list[Path]:
    """The run folders of a sweep, in the order of its points.

    Raises:
        ConfigurationError: sweep.yaml is damaged.
    """
    return [folder / name for name in _read(folder)["points"] if is_run(folder / name)]


def _read(folder: Path) -> dict[str, Any]:
    file = folder / SWEEP_FILE
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{file} cannot be read ({one_line(error)}): launch the sweep again.") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("points"), dict):
        raise ConfigurationError(f"{file} names no points: launch the sweep again.")
    return tree


def makers(runs: Sequence[RunFolder], earlier: Sequence[RunFolder] = ()) -> dict[tuple[Path, str], RunFolder]:
    """Which run makes a stage for which other of `runs`: by the other's path and the stage's name.

    Stages with equal fingerprints are the same. One that a run has made or begun itself stays its own; of several, the
    one that is current is the others', else one that was begun, else the first run's. What an `earlier` run has made
    counts as well, but nothing is made there.
    """
    same: dict[tuple[str, str], list[RunFolder]] = {}
    for run in runs:
        for stage in stages_of(run.recipe):
            same.setdefault((stage.name, fingerprint_of(stage, run)), []).append(run)
    made: dict[tuple[Path, str], RunFolder] = {}
    for (name, fingerprint), group in same.items():
        stage = stage_named(name)
        own = [run for run in group if _has_begun(stage, run)]
        others = (run for run in earlier if _has_begun(stage, run) and fingerprint_of(stage, run) == fingerprint)
        current = (run for run in (*own, *others) if is_current(stage, run))
        maker = next(current, (own or group)[0])
        made |= {(run.path, name): maker for run in group if run is not maker and run not in own}
    return made


def share(run: RunFolder, stage: Stage, maker: RunFolder) -> None:
    """Link everything that a stage leaves in a run folder to the run that makes it, now or later."""
    for link, target in zip(_left_by(stage, run), _left_by(stage, maker), strict=True):
        if not link.is_relative_to(run.path):
            continue  # what recipes share anyway, such as an imported base
        relative = os.path.relpath(target, link.parent)
        if link.is_symlink() and os.readlink(link) == relative:
            continue  # a job may be reading by it
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(relative)


def _left_by(stage: Stage, run: RunFolder) -> list[Path]:
    return [stage.output(run), *stage.beside(run), record_of(stage, run), begun_note(run, stage)]


def _has_begun(stage: Stage, run: RunFolder) -> bool:
    """Whether something of the stage lies in the run folder itself."""
    return any(
        path.is_relative_to(run.path) and path.exists() and not path.is_symlink() for path in _left_by(stage, run)
    )
