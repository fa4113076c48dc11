"""`nemo-run launch`: a recipe file becomes a run folder and a NeMo-Run experiment."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


def launch(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, such as recipes/gpt_oss_tiny_lora.py.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Fields of the recipe to change.")
    ] = None,
    executor: Annotated[str, typer.Option(help="Where to run: local (processes of this machine).")] = "local",
    dryrun: Annotated[bool, typer.Option("--dryrun", help="Show the stages and commands, run nothing.")] = False,
    runs: Annotated[Path, typer.Option(help="Folder in which the run gets its own.")] = Path("runs"),
) -> None:
    """Run a recipe: prepare, import, fine-tune, evaluate, export. What is already whole and current is skipped.

    Example: nemo-run launch recipes/gpt_oss_tiny_lora.py data.source=tickets.csv trainer.max_steps=50
    """
    from launch import experiment, recipes

    started = time.perf_counter()
    run = recipes.make_run(recipe, overrides or [], runs, write=not dryrun)
    if dryrun:
        experiment.show(run, executor)
        return
    experiment.execute(run, executor)
    experiment.summarise(run, time.perf_counter() - started)
