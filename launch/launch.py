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

    Example: nemo-run launch recipes/gpt_oss_tiny_lora.py data.source=tickets.csv trainer.max_steps=50
    """
    from launch import profiles, recipes
    from launch.selection import Selection

    started = time.perf_counter()
    mine, of_profile = profiles.split_overrides(overrides or [])
    profile = profiles.load_profile(cluster, of_profile, executor)
    folder = runs or Path(profile.runs or "runs")
    run = recipes.make_run(recipe, mine, folder)
    selection = Selection(only, first, last)
    stages, todo = selection.of(run), selection.pending(run)
    if dryrun:
        from launch.dryrun import show

        show(run, profile, stages, todo)
        return
    if export_script is not None:
        from launch.export_scripts import export

        export(run, profile, todo, export_script)
        return
    from launch import start

    start.start(run, profile, stages, todo, wait=wait, force=force)
    if profile.executor != "slurm":
        start.summarise(run, time.perf_counter() - started)
