"""The plan of a launch: a run, the profile of the place where its stages run, and the stages to be done."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import LaunchError
from launch.executors.profiles import Profile
from launch.executors.tunnel import tunnel_of
from pipeline.pending import Selection
from pipeline.run_folder import RunFolder
from pipeline.stage import Stage
from recipes.schema.recipe import Recipe


@dataclass(frozen=True)
class Resources:
    """Resources of a stage: nodes, processes a node, GPUs a node; and whether its processes train together."""

    nodes: int = 1
    processes: int = 1
    gpus: int = 0
    trains: bool = False


@dataclass(frozen=True)
class LaunchPlan:
    """One launch, as preflight, dry run and start read it.

    Attributes:
        stages: those that were selected, in order.
        todo: those of them whose output is missing or out of date.
        restarts: how often this launch has started the first of them again.
        waits: for jobs of other runs, by stage, in the words of `sbatch --dependency`.
        makers: of stages that another run of a sweep makes, that run's name.
    """

    run: RunFolder
    profile: Profile
    stages: tuple[Stage, ...]
    todo: tuple[Stage, ...]
    restarts: int = 0
    waits: Mapping[str, str] = field(default_factory=dict)
    makers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, run: RunFolder, profile: Profile, selection: Selection) -> LaunchPlan:
        """The plan for the selected stages of a run.

        Raises:
            LaunchError: the recipe has no such stage, or the last one comes before the first.
        """
        return cls(run, profile, tuple(selection.of(run)), tuple(selection.pending(run)))

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def trains(self) -> bool:
        """Whether a stage to be done runs in as many processes as training does."""
        return any(stage.trains for stage in self.todo)

    @cached_property
    def tunnel(self) -> Any:
        """NeMo-Run's tunnel to the machine that submits, not connected yet."""
        return tunnel_of(self.profile)

    def resources(self, stage: Stage) -> Resources:
        """Of one stage; a rehearsal trains on CPUs, also where there are GPUs."""
        if not stage.trains:
            return Resources()
        gpus = self.recipe.processes if self.profile.gpus_per_node and not self.recipe.model.toy else 0
        return Resources(self.recipe.nodes, self.recipe.processes, gpus, trains=True)

    def dependencies(self, stage: Stage) -> list[str]:
        """Stages to be done that must end before this one starts: what it reads, or the one before it where one
        machine runs them one after the other."""
        before = [each.name for each in self.todo[: self.todo.index(stage)]]
        if self.profile.executor == "slurm":
            return [name for name in before if name in stage.after]
        return before[-1:]

    def local_inputs(self) -> list[Path]:
        """Files and folders that the recipe reads and that no stage makes."""
        named = [self.recipe.data.source] if self.recipe.model.toy else [self.recipe.model.hf, self.recipe.data.source]
        return [Path(name) for name in named if str(name).startswith("/")]

    def mounts(self) -> Iterator[str]:
        """The profile's mounts, then the runs and every local path that the recipe names, where it stands outside.

        Raises:
            LaunchError: such a path cannot stand in a job script.
        """
        mounts = list(self.profile.container.mounts)
        yield from mounts
        paths = [(self.run.path.parent, ""), *((path, ":ro") for path in self.local_inputs())]
        if self.run.base.parent != self.run.path:
            paths.append((self.run.base.parent, ""))
        for path, options in paths:
            if not re.fullmatch(r"[\w./+@%=-]+", str(path)):
                raise LaunchError(
                    f"{str(path)!r} is to be mounted into a container, and a shell or a mount would take it apart: "
                    "rename it, with letters, digits and ./+@%=- only."
                )
            if not _is_mounted(path, mounts):
                mounts.append(f"{path}:{path}{options}")
                yield mounts[-1]


def _is_mounted(path: Path, mounts: list[str]) -> bool:
    """Whether a mount shows `path` under the same name."""
    for mount in mounts:
        host, inside, *_ = [*mount.split(":"), ""]
        if host == inside and path.is_relative_to(host):
            return True
    return False
