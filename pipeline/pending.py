"""Which stages of a run are to be done now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common import artifacts
from common.errors import LaunchError
from pipeline.run_folder import RunFolder
from pipeline.stage import Stage, is_current, record_of, stages_of


@dataclass(frozen=True)
class Selection:
    """The stages that a launch selects by name; all where no name is given."""

    only: str | None = None
    first: str | None = None
    last: str | None = None

    def of(self, run: RunFolder) -> list[Stage]:
        """The selected stages, in order.

        Raises:
            LaunchError: the recipe has no such stage, or the last one comes before the first.
        """
        stages = stages_of(run.recipe)
        names = [stage.name for stage in stages]
        for name in (self.only, self.first, self.last):
            if name is not None and name not in names:
                raise LaunchError(f"{run.recipe.name} has no stage {name!r}: its stages are {', '.join(names)}.")
        if self.only is not None:
            if self.first or self.last:
                raise LaunchError("--only names one stage: leave out --from and --until.")
            return [stage for stage in stages if stage.name == self.only]
        start = names.index(self.first) if self.first else 0
        stop = names.index(self.last) if self.last else len(names) - 1
        if stop < start:
            raise LaunchError(f"stage {self.last} comes before {self.first}: exchange --from and --until.")
        return stages[start : stop + 1]

    def pending(self, run: RunFolder) -> list[Stage]:
        """The selected stages whose output is missing, damaged or made from something else."""
        return [stage for stage in self.of(run) if not is_current(stage, run)]


def not_made(run: RunFolder, todo: Sequence[Stage]) -> list[tuple[Stage, str]]:
    """Missing inputs of `todo`, which no earlier stage of it makes: (stage, name of the stage that makes the input)."""
    names = {stage.name for stage in todo}
    return [
        (stage, before.name)
        for stage in todo
        for before in stages_of(run.recipe)
        if before.name in stage.after and before.name not in names and not is_current(before, run)
    ]


def first_unrecorded(run: RunFolder, last: str) -> str | None:
    """The first stage up to `last` that is not done, judged by the run's records alone; None where `last` is done.

    Unlike `is_current` this needs neither the outputs nor the ticket source: they may lie on another machine.
    """
    stages = Selection(last=last).of(run)
    records = {stage.name: artifacts.read_manifest(stage.output(run), record_of(stage, run)) for stage in stages}
    made = {name: record.fingerprint for name, record in records.items() if record}
    final = records[last]
    if final and all(made.get(name, read) == read for name, read in final.inputs["after"].items()):
        return None  # also where a record of what was shared did not come along
    return next((name for name in records if name not in made), last)
