"""From a planned run to stages that run: checks first, then the executor."""

from __future__ import annotations

import os
import time

from errors import LaunchError
from launch import experiment, login, preflight, recipes, status
from launch.profiles import Profile
from recipes import config, resume
from recipes.pipeline import RECIPE_FILE, RunFolder, Stage, details_of, stages_of


def start(
    run: RunFolder,
    profile: Profile,
    stages: list[Stage],
    todo: list[Stage],
    *,
    wait: bool = False,
    force: bool = False,
) -> None:
    """Check everything, write the run folder and run the stages, or submit them.

    Raises:
        LaunchError: a check failed, the cluster refused a job, or a stage failed.
    """
    for stage in stages:
        if stage not in todo:
            print(f"{stage.name}: current, skipped ({stage.output(run)})", flush=True)
    if not todo:
        return
    tunnel = login.connect(profile)
    preflight.check(run, profile, todo, tunnel, force=force)
    if login.is_remote(tunnel):
        login.put_text(tunnel, config.dump_recipe(run.recipe.raw), f"{run.path}/{RECIPE_FILE}")
    else:
        _settle(run, todo)
        recipes.write_run(run)
    if profile.executor != "slurm":
        experiment.execute(run, profile, todo)
        return
    for name, job in experiment.submit(run, profile, todo, tunnel).items():
        print(f"{name}: job {job}", flush=True)
    name = run.path.name if login.is_remote(tunnel) else os.path.relpath(run.path)
    print(f"nemo-run status {name} · nemo-run logs -f {name} · nemo-run cancel {name}", flush=True)
    if wait:
        _wait(name)


def _settle(run: RunFolder, todo: list[Stage]) -> None:
    """Refuse checkpoints of other settings, and move finished trainings away that lost files since."""
    for stage in todo:
        resume.check(run, stage)
        if aside := resume.set_aside_damaged(run, stage):
            print(f"{stage.name}: files are missing from its output, which now lies in {aside}", flush=True)


def _wait(name: str, seconds: float = 2.0) -> None:
    """Print each change of a stage's state until none can change any more.

    Raises:
        LaunchError: a stage failed.
    """
    told: dict[str, str] = {}
    while True:
        rows = status.of_run(name)
        for row in rows:
            if told.get(row.stage) != row.state:
                told[row.stage] = row.state
                print(f"{row.stage}: {row.state} {row.note}".rstrip(), flush=True)
        if not any(row.active for row in rows):
            break
        time.sleep(seconds)
    failed = [row for row in rows if row.failed]
    if failed:
        raise LaunchError(f"stage {failed[0].stage} {failed[0].state}: {failed[0].note}")


def summarise(run: RunFolder, seconds: float) -> None:
    """Print a table of the stages: what each made, where, and how long it took when it ran."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{run.recipe.name}: {seconds:.0f} s", title_justify="left")
    for heading in ("stage", "seconds", "made", "where"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left", overflow="fold")
    for stage in stages_of(run.recipe):
        details = details_of(stage, run)
        output = os.path.relpath(stage.output(run))
        table.add_row(stage.name, f"{details.get('seconds', 0):.1f}", str(details.get("made", "")), output)
    Console(width=max(100, Console().width)).print(table)
