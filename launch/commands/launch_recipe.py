"""`nemo-run launch`: a recipe file becomes a run folder and a NeMo-Run experiment."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigurationError


def launch(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, such as recipes/gpt_oss_tiny_lora.py.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]…", help="Fields of the recipe, or cluster.KEY=VALUE of the profile."),
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="local, docker, slurm, skypilot or kubeflow; by default the profile's.")
    ] = None,
    cluster: Annotated[Path | None, typer.Option(help="Cluster profile, such as clusters/slurm_pyxis.yaml.")] = None,
    only: Annotated[str | None, typer.Option(help="This stage alone.")] = None,
    first: Annotated[str | None, typer.Option("--from", help="From this stage on.")] = None,
    last: Annotated[str | None, typer.Option("--until", help="Up to and with this stage.")] = None,
    dryrun: Annotated[bool, typer.Option("--dryrun", help="Print exactly what would run; touch nothing.")] = False,
    export_script: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write sbatch scripts that need no NeMo-Run; submit nothing.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Start also what does not fit by the memory model.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="With Slurm: stay until the last stage has ended.")] = False,
    runs: Annotated[Path | None, typer.Option(help="Folder in which the run gets its own; by default runs.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2,…", help="One run for each value; of several such options, for each point."),
    ] = None,
    sweep_random: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only N points of the grid.")] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With Slurm: so many runs of a sweep at a time; else all.")
    ] = None,
) -> None:
    """Run a recipe: prepare, import, fine-tune, evaluate, export. What is already whole and current is skipped.

    A sweep gets a folder of its own with a run folder for each point; what the points have in common is made once.

    Example: nemo-run launch recipes/gpt_oss_tiny_lora.py data.source=tickets.csv name=tickets
    Example: nemo-run launch recipes/gpt_oss_tiny_lora.py --sweep optim.config.lr=1e-3,4e-3 --sweep peft.dim=4,8,16
    """
    from launch.executors import profiles
    from launch.launch_plan import LaunchPlan
    from pipeline.loading import make_run
    from pipeline.pending import Selection
    from pipeline.upgrade import upgrade_run

    started = time.perf_counter()
    mine, of_profile = profiles.split_overrides(overrides or [])
    profile = profiles.load_profile(cluster, of_profile, executor)
    folder, selection = runs or Path(profile.runs or "runs"), Selection(only, first, last)
    if sweep:
        if export_script is not None:
            raise ConfigurationError("--export-script writes the scripts of one run: leave out --sweep.")
        from launch.sweep import make_sweep
        from launch.sweep_start import SweepPlan, launch_sweep, show_sweep

        points = make_sweep(recipe, mine, sweep, sweep_random, folder)
        sweep_plan = SweepPlan(points, profile, selection, parallel)
        if dryrun:
            show_sweep(sweep_plan)
            return
        launch_sweep(sweep_plan, {"recipe": str(recipe), "overrides": mine, "sweep": sweep}, wait=wait, force=force)
        return
    if sweep_random is not None or parallel is not None:
        raise ConfigurationError("--sweep-random and --parallel belong to a sweep: add --sweep KEY=V1,V2.")
    run = make_run(recipe, mine, folder)
    if not dryrun and upgrade_run(run.path):
        print(f"{run.path} was made by version 0.1: its records now have today's form", flush=True)
    plan = LaunchPlan.of(run, profile, selection)
    if dryrun:
        from launch.dryrun import show

        show(plan)
        return
    if export_script is not None:
        from launch.export_scripts import export

        export(plan, export_script)
        return
    from launch.start import run_stages, summarise

    run_stages(plan, wait=wait, force=force)
    if profile.executor != "slurm":
        summarise(plan, time.perf_counter() - started)
