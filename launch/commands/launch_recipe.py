"""`nemo-run launch`: a recipe file becomes a run folder and a NeMo-Run experiment."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


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
) -> None:
    """Run a recipe: prepare, import, fine-tune, evaluate, export. What is already whole and current is skipped.

    Example: nemo-run launch recipes/gpt_oss_tiny_lora.py data.source=tickets.csv name=tickets
    """
    from launch.executors import profiles
    from launch.launch_plan import LaunchPlan
    from pipeline.loading import make_run
    from pipeline.pending import Selection
    from pipeline.upgrade import upgrade_run

    started = time.perf_counter()
    mine, of_profile = profiles.split_overrides(overrides or [])
    profile = profiles.load_profile(cluster, of_profile, executor)
    run = make_run(recipe, mine, runs or Path(profile.runs or "runs"))
    if not dryrun and upgrade_run(run.path):
        print(f"{run.path} was made by version 0.1: its records now have today's form", flush=True)
    plan = LaunchPlan.of(run, profile, Selection(only, first, last))
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
