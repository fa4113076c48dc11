"""Run the stages of a run folder as tasks of one NeMo-Run experiment."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from errors import LaunchError
from recipes.pipeline import RunFolder, Stage, details_of, is_current, record_of, stages_of
from recipes.stage import LAUNCHER, log_of

if TYPE_CHECKING:
    import nemo_run

EXECUTORS = ("local",)


def pending(run: RunFolder) -> list[Stage]:
    """Stages that must run, in order: those whose output is missing, damaged or made from something else."""
    return [stage for stage in stages_of(run.recipe) if not is_current(stage, run)]


def show(run: RunFolder, executor: str) -> None:
    """Print what `execute` would do."""
    _check(executor)
    todo = pending(run)
    print(f"run folder {run.path}")
    for stage in stages_of(run.recipe):
        command = " ".join(_command(run, stage)) if stage in todo else "current, skipped"
        print(f"{stage.name:9} {command}")


def execute(run: RunFolder, executor: str) -> None:
    """Run what is not current, one stage after the other.

    Raises:
        LaunchError: a stage failed; the stages after it did not run.
    """
    _check(executor)
    todo = pending(run)
    for stage in stages_of(run.recipe):
        if stage not in todo:
            print(f"{stage.name}: current, skipped ({stage.output(run)})", flush=True)
    if not todo:
        return
    started = time.time()
    os.environ[LAUNCHER] = str(os.getpid())
    # torchrun and python of this environment, also where it is not activated
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    _run_experiment(run, todo)
    for stage in todo:
        record = record_of(stage, run)
        if not is_current(stage, run) or record.stat().st_mtime < started - 1:
            raise LaunchError(f"stage {stage.name} failed: {_last_error(log_of(run, stage.name))}")


def _run_experiment(run: RunFolder, todo: list[Stage]) -> None:
    import nemo_run

    with nemo_run.Experiment(
        run.path.name,
        base_dir=str(run.path / "experiments"),
        log_level="ERROR",
        clean_mode=True,
        enable_goodbye_message=False,
        skip_status_at_exit=True,
    ) as experiment:
        before: list[str] = []
        for stage in todo:
            script = nemo_run.Script(
                path="recipes.stage", m=True, entrypoint="python", args=[str(run.path), stage.name]
            )
            task = experiment.add(
                script, executor=_local(run, stage), name=stage.name, dependencies=before or None, tail_logs=True
            )
            before = [str(task)]
        experiment.run()


def _local(run: RunFolder, stage: Stage) -> nemo_run.LocalExecutor:
    import nemo_run

    processes = run.recipe.processes if stage.trains else 1
    return nemo_run.LocalExecutor(
        ntasks_per_node=processes,
        launcher="torchrun" if processes > 1 else None,
        env_vars={
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "LOGLEVEL": "ERROR",
            "PYTHONWARNINGS": "ignore",
        },
    )


def _command(run: RunFolder, stage: Stage) -> list[str]:
    processes = run.recipe.processes if stage.trains else 1
    start = ["torchrun", f"--nproc-per-node={processes}"] if processes > 1 else ["python"]
    return [*start, "-m", "recipes.stage", str(run.path), stage.name]


def _check(executor: str) -> None:
    if executor not in EXECUTORS:
        raise LaunchError(f"there is no executor {executor!r}: choose {' or '.join(EXECUTORS)}.")


def _last_error(log: Path) -> str:
    """The last line of a log that tells what went wrong, and where to read the rest."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith("error: ")] or [
        line for line in lines if ": " in line and line.split(":")[0].endswith(("Error", "Exception", "Interrupt"))
    ]
    reason = told[-1].removeprefix("error: ") if told else "its process ended without a word"
    return f"{reason}\nIts whole log is {log}; the same command goes on from what is finished."


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
