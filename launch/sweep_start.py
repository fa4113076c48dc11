"""From a sweep to runs: one check for all, then one after the other here, or side by side on Slurm."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from common.errors import ConfigurationError, LaunchError
from launch import dryrun, experiment, preflight, store
from launch.executors.build import AFTER
from launch.executors.profiles import Profile
from launch.launch_plan import LaunchPlan
from launch.run_status import active_jobs
from launch.start import settle, until_ended
from launch.sweep import Sweep, by_point
from pipeline import resume
from pipeline.loading import write_run
from pipeline.pending import Selection, not_made
from pipeline.run_folder import RunFolder
from pipeline.stage import stage_named
from pipeline.sweep_folder import is_sweep, makers, runs_of_sweep, share, write_sweep


@dataclass(frozen=True)
class SweepPlan:
    """One launch of a sweep.

    Attributes:
        parallel: with Slurm, how many runs have jobs that may start at the same time; None for all.
    """

    sweep: Sweep
    profile: Profile
    selection: Selection
    parallel: int | None = None

    @cached_property
    def makers(self) -> dict[tuple[Path, str], RunFolder]:
        """Which run makes a stage for which other."""
        folder, paths = self.sweep.folder, {run.path for run in self.sweep.runs}
        earlier = runs_of_sweep(folder) if is_sweep(folder) else []
        return makers(self.sweep.runs, [RunFolder.open(path) for path in earlier if path not in paths])

    @cached_property
    def whole(self) -> list[LaunchPlan]:
        """Each run's plan as if it were alone."""
        return [LaunchPlan.of(run, self.profile, self.selection) for run in self.sweep.runs]

    @cached_property
    def plans(self) -> list[LaunchPlan]:
        """Each run's plan without the stages that another run makes."""
        plans = []
        for plan in self.whole:
            elsewhere = {
                stage.name: maker.path.name
                for stage in plan.todo
                if (maker := self.makers.get((plan.run.path, stage.name)))
            }
            todo = tuple(stage for stage in plan.todo if stage.name not in elsewhere)
            plans.append(replace(plan, todo=todo, makers=elsewhere))
        return plans


def show_sweep(plan: SweepPlan) -> None:
    """Print every point, and what would run for it."""
    print(f"sweep folder {plan.sweep.folder}")
    queue = Queue(plan)
    for number, (point, each) in enumerate(zip(plan.sweep.points, plan.plans, strict=True), 1):
        waiting = queue.placed(each)
        print(f"\n=== {number} of {len(plan.plans)}: {' '.join(point.overrides)} ===")
        dryrun.show(waiting)
        queue.add(each, {stage.name: f"<{each.run.path.name}.{stage.name}>" for stage in each.todo})


def launch_sweep(plan: SweepPlan, about: Mapping[str, object], *, wait: bool = False, force: bool = False) -> None:
    """Check everything, write the run folders, and run or submit what is missing; a failed run stops no other.

    Raises:
        LaunchError: a check failed, or at the end: some runs failed, which are named.
    """
    sweep = plan.sweep
    if plan.profile.executor not in preflight.SHARED_EXECUTORS or plan.profile.slurm.ssh:
        raise ConfigurationError(
            f"the runs of a sweep share folders, which cannot be reached from here on {plan.profile.executor}: launch "
            "the sweep where they lie (from the login node), or run by run."
        )
    _check(plan, force)
    last = plan.selection.of(sweep.runs[0])[-1].name
    write_sweep(sweep.folder, {**about, "until": last}, {point.name: point.overrides for point in sweep.points})
    with store.locked(sweep.folder):
        for run in sweep.runs:
            write_run(run)
            for (path, name), maker in plan.makers.items():
                if path == run.path:
                    share(run, stage_named(name), maker)
        failed = _submit(plan) if plan.profile.executor == "slurm" else _run(plan)
    folder = os.path.relpath(sweep.folder)
    print(f"nemo-run status {folder} · nemo-run compare {folder} · nemo-run cancel {folder}", flush=True)
    if wait and plan.profile.executor == "slurm":
        ended = until_ended([str(run.path) for run in sweep.runs])
        failed |= {Path(run).name: reason for run, reason in ended.items()}
    if failed:
        reasons = "\n".join(f"  - {name}: {reason}" for name, reason in failed.items())
        raise LaunchError(f"{len(failed)} of {len(sweep.runs)} runs failed; the same command goes on:\n{reasons}")


def _check(plan: SweepPlan, force: bool) -> None:
    """Refuse a sweep of which a run cannot succeed.

    Raises:
        LaunchError: lists every reason, with the points that it is about.
    """
    reasons: dict[str, list[str]] = {}
    for each, own in zip(plan.whole, plan.plans, strict=True):
        sentences = preflight.obstacles_of(each, force=force, alone=False)
        for stage in own.todo:
            try:
                resume.check(own.run, stage)
            except LaunchError as error:
                sentences.append(str(error))
        for sentence in sentences:
            reasons.setdefault(sentence, []).append(each.run.path.name)
    total = len(plan.plans)
    everywhere = [run.path.name for run in plan.sweep.runs]
    reasons |= dict.fromkeys(preflight.too_large(plan.plans, plan.sweep.folder), everywhere)
    if not reasons and plan.profile.executor == "slurm":
        alike = {str([(stage.name, each.resources(stage)) for stage in each.todo]): each for each in plan.plans}
        reasons |= {text: everywhere for each in alike.values() for text in preflight.refused_by_slurm(each)}
    if reasons:
        raise LaunchError(by_point(reasons, total))


def _run(plan: SweepPlan) -> dict[str, str]:
    """Run what is missing, one run after the other; why runs failed, by their names."""
    failed: dict[str, str] = {}
    for number, each in enumerate(plan.plans, 1):
        name = each.run.path.name
        missing = ", ".join(stage.name for stage in each.todo) or "current, skipped"
        print(f"{name} ({number} of {len(plan.plans)}): {missing}", flush=True)
        try:
            for stage, before in not_made(each.run, each.todo):
                maker = each.makers.get(before, name)
                raise LaunchError(
                    f"stage {stage.name} reads what stage {before} of {maker} did not make: "
                    f"see nemo-run logs {maker} {before}."
                )
            if each.todo:
                settle(each)
                experiment.execute(each)
        except LaunchError as error:
            failed[name] = str(error)
            print(f"{name} failed: {error}", flush=True)
    return failed


@dataclass
class Queue:
    """The jobs of a sweep on Slurm: which a run's stages wait for.

    Attributes:
        jobs: ids by run and stage, of those that were handed in or have not ended yet.
        window: the jobs of the last runs, as many runs as may have some at a time.
    """

    plan: SweepPlan
    jobs: dict[tuple[Path, str], str] = field(default_factory=dict)
    window: list[list[str]] = field(default_factory=list)

    def placed(self, each: LaunchPlan) -> LaunchPlan:
        """A run's plan that waits for the stages that other runs make for it, and for room in the window."""
        before = self.window[0] if len(self.window) == self.plan.parallel else []
        waits: dict[str, str] = {}
        for stage in each.todo:
            makers = [(self.plan.makers[each.run.path, name].path, name) for name in stage.after if name in each.makers]
            read = [self.jobs[maker] for maker in makers if maker in self.jobs]
            first = before if not each.dependencies(stage) else []
            conditions = [f"{AFTER}:{':'.join(read)}"] * bool(read) + [f"afterany:{':'.join(first)}"] * bool(first)
            if conditions:
                waits[stage.name] = ",".join(conditions)
        return replace(each, waits=waits)

    def add(self, each: LaunchPlan, jobs: Mapping[str, str]) -> None:
        """Note the jobs of a run, by stage."""
        self.jobs |= {(each.run.path, stage): job for stage, job in jobs.items()}
        if jobs:
            if len(self.window) == self.plan.parallel:
                self.window.pop(0)
            self.window.append(list(jobs.values()))


def _submit(plan: SweepPlan) -> dict[str, str]:
    """Hand in what is missing and has no job yet; why runs were not handed in, by their names."""
    failed: dict[str, str] = {}
    queue = Queue(plan)
    active = [active_jobs(each.run.path, each.tunnel) for each in plan.plans]
    for each, states in zip(plan.plans, active, strict=True):
        queue.add(each, {stage: job for stage, (job, _) in states.items()})
    for each, states in zip(plan.plans, active, strict=True):
        name = each.run.path.name
        if states or not each.todo:
            jobs = ", ".join(f"{stage} {state.name} as job {job}" for stage, (job, state) in states.items())
            print(f"{name}: {jobs or 'current, skipped'}", flush=True)
            continue
        try:
            settle(each)
            jobs = experiment.submit(queue.placed(each))
        except LaunchError as error:
            failed[name] = str(error)
            continue
        queue.add(each, jobs)
        print(f"{name}: {', '.join(f'{stage} job {job}' for stage, job in jobs.items())}", flush=True)
    return failed
