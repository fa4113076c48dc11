"""From a plan to stages that run: checks first, then the executor."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from common.errors import LaunchError
from launch import experiment, preflight, run_status
from launch.executors.tunnel import connect, is_remote, put_text
from launch.launch_plan import LaunchPlan
from pipeline import resume
from pipeline.loading import write_run
from pipeline.run_folder import RECIPE_FILE
from pipeline.stage import details_of, stages_of
from recipes.schema.recipe import dump_recipe


def run_stages(plan: LaunchPlan, *, wait: bool = False, force: bool = False) -> None:
    """Check everything, write the run folder and run the stages, or submit them.

    Raises:
        LaunchError: a check failed, the cluster refused a job, or a stage failed.
    """
    for stage in plan.stages:
        if stage not in plan.todo:
            print(f"{stage.name}: current, skipped ({stage.output(plan.run)})", flush=True)
    if not plan.todo:
        return
    connect(plan.tunnel)
    preflight.check(plan, force=force)
    if is_remote(plan.tunnel):
        put_text(plan.tunnel, dump_recipe(plan.recipe), f"{plan.run.path}/{RECIPE_FILE}")
    else:
        settle(plan)
        write_run(plan.run)
    if plan.profile.executor != "slurm":
        experiment.execute(plan)
        return
    for stage, job in experiment.submit(plan).items():
        print(f"{stage}: job {job}", flush=True)
    name = plan.run.path.name if is_remote(plan.tunnel) else os.path.relpath(plan.run.path)
    print(f"nemo-run status {name} · nemo-run logs -f {name} · nemo-run cancel {name}", flush=True)
    if wait and (failed := until_ended([name])):
        raise LaunchError(failed[name])


def settle(plan: LaunchPlan) -> None:
    """Refuse checkpoints of other settings, and move finished trainings away that lost files since."""
    for stage in plan.todo:
        resume.check(plan.run, stage)
        if aside := resume.set_aside_damaged(plan.run, stage):
            print(f"{stage.name}: files are missing from its output, which now lies in {aside}", flush=True)


def until_ended(runs: Sequence[str], seconds: float = 2.0) -> dict[str, str]:
    """Print each change of a stage's state until none of these runs has a job left; why runs failed, by run.

    Asks Slurm once a run, and waits as many `seconds` for each before it asks again.
    """
    shown: dict[tuple[str, str], str] = {}
    while True:
        rows = [(run, row) for run in runs for row in run_status.of_run(run)]
        for run, row in rows:
            if shown.get((run, row.stage)) != row.state:
                shown[run, row.stage] = row.state
                of = f"{Path(run).name} " if len(runs) > 1 else ""
                print(f"{of}{row.stage}: {row.state} {row.note}".rstrip(), flush=True)
        if not any(row.active for _, row in rows):
            # the first failed stage of each
            return {run: f"stage {row.stage} {row.state}: {row.note}" for run, row in reversed(rows) if row.failed}
        time.sleep(seconds * len(runs))


def summarise(plan: LaunchPlan, seconds: float) -> None:
    """Print a table of the stages: what each made, where, and how long it took when it ran."""
    from rich.console import Console
    from rich.table import Table

    run = plan.run
    table = Table(title=f"{run.recipe.name}: {seconds:.0f} s", title_justify="left")
    for heading in ("stage", "seconds", "made", "where"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left", overflow="fold")
    for stage in stages_of(run.recipe):
        details = details_of(stage, run)
        table.add_row(stage.name, f"{details.seconds:.1f}", details.summary, os.path.relpath(stage.output(run)))
    Console(width=max(100, Console().width)).print(table)
