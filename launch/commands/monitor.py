"""`nemo-run status`, `logs` and `cancel`: what became of a launch."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import LaunchError
from pipeline.sweep_folder import is_sweep, runs_of_sweep

if TYPE_CHECKING:
    from launch.store import Launch

Run = Annotated[str, typer.Argument(metavar="RUN", help="Run folder; or the name of a run on another machine.")]
RunOrSweep = Annotated[
    str, typer.Argument(metavar="RUN|SWEEP", help="Run or sweep folder; or the name of a run on another machine.")
]


def status(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|SWEEP]", help="Run or sweep folder, or a run elsewhere by its name; without it, all."
        ),
    ] = None,
) -> None:
    """Each stage of a run, or each run of a sweep: done, running, waiting or failed, with the last error; or all runs.

    Example: nemo-run status
    Example: nemo-run status runs/tickets
    """
    if run is None:
        _list_runs(Path("runs"))
        return
    from rich.console import Console
    from rich.table import Table

    from launch import run_status

    sweep = is_sweep(Path(run))
    rows = run_status.of_sweep(Path(run)) if sweep else run_status.of_run(run)
    table = Table("run" if sweep else "stage", "state", "job", "", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row.stage, row.state, row.job, row.note)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if any(row.failed for row in rows):
        raise typer.Exit(1)


def _list_runs(folder: Path) -> None:
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table

    from launch.run_list import listed_runs

    runs = listed_runs(folder)
    if not runs:
        raise LaunchError(f"there is no run in {folder}: nemo-run launch recipes/gpt_oss_tiny_lora.py makes one.")
    table = Table("run", "changed", "state", "stage", "job", "", box=None, pad_edge=False)
    for each in runs:
        changed, row = datetime.fromtimestamp(each.changed), each.row
        table.add_row(each.name, f"{changed:%Y-%m-%d %H:%M}", row.state, row.stage, row.job, row.note)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def logs(
    run: Run,
    stage: Annotated[str | None, typer.Argument(help="Stage; by default the one that runs or ran last.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on printing until the stage ends.")] = False,
) -> None:
    """What a stage printed.

    Example: nemo-run logs runs/tickets finetune
    """
    from launch import run_status, store

    launch = store.last_launch(run)
    if launch is None:
        run_status.find_run(run, launch)
        raise LaunchError(f"{run} was never launched from here: there is no log.")
    chosen = stage or _current_stage(run, launch)
    if chosen not in launch.jobs:  # what was current at the last launch ran at one before
        earlier = store.last_launch(run, chosen)
        if earlier is None:
            raise LaunchError(f"no launch of {run} ran a stage {chosen}: the last had {', '.join(launch.jobs)}.")
        launch = earlier
    printed = 0
    while True:
        active = {row.stage: row.active for row in run_status.of_run(run)}.get(chosen, False)
        printed += _print_from(launch, chosen, printed)
        if not (follow and active):
            break
        time.sleep(1)
    if not printed:
        raise LaunchError(f"stage {chosen} has printed nothing yet: nemo-run logs -f {run} {chosen} waits for it.")


def cancel(run: RunOrSweep) -> None:
    """Stop what runs or waits, of a run or of all runs of a sweep; a new launch goes on from what is finished.

    Example: nemo-run cancel runs/tickets
    """
    from launch import run_status, store

    if is_sweep(Path(run)):
        _cancel_sweep(Path(run))
        return
    launch = store.last_launch(run)
    folder = run_status.find_run(run, launch)
    process = store.holder(folder.path) if folder else None
    if process is not None:
        os.kill(process, signal.SIGINT)
        print(f"told process {process} to stop")
        return
    stopped = [row for row in run_status.of_run(run) if row.active]
    for row in reversed(stopped):  # the last first, so that none starts because the one before it ended
        assert launch is not None
        _cancel_job(launch, row.stage, row.job)
        print(f"{row.stage}: job {row.job} cancelled")
    if not stopped:
        print("nothing runs or waits")


def _cancel_sweep(folder: Path) -> None:
    from launch import store

    process = store.holder(folder)
    if process is not None:
        os.kill(process, signal.SIGINT)
        print(f"told process {process} to stop")
        return
    for run in reversed(runs_of_sweep(folder)):  # the last first: the window of --parallel lets none start
        print(f"{run.name}: ", end="")
        cancel(str(run))


def _cancel_job(launch: Launch, stage: str, job: str) -> None:
    from launch.executors.tunnel import ask

    tunnel = getattr(launch.jobs[stage].executor, "tunnel", None)
    if tunnel is None:
        launch.experiment.cancel(stage)
        return
    # not NeMo-Run's Experiment.cancel (nemo-run 0.11.1): it leaves out, without a word, a job that it just cannot find
    answer = ask(tunnel, "scancel", job)
    if not answer.ok:
        raise LaunchError(f"job {job} of stage {stage} was not cancelled ({answer.err.strip()}): try again.")


def _current_stage(run: str, launch: Launch) -> str:
    from launch import run_status

    rows = [row for row in run_status.of_run(run) if row.stage in launch.jobs]
    begun = [row for row in rows if row.state not in ("waiting", "not started", "cancelled")] or rows
    return next((row.stage for row in begun if row.active or row.failed), begun[-1].stage)


def _print_from(launch: Launch, stage: str, start: int) -> int:
    """Print a stage's output from a byte on; how many bytes that were."""
    from launch import run_status
    from launch.executors.tunnel import ask

    job = launch.jobs[stage]
    tunnel = getattr(job.executor, "tunnel", None)
    if tunnel is not None:
        files = run_status.job_logs(job, tunnel)
        text = ask(tunnel, "tail", "-c", f"+{start + 1}", files[0]).out if files else ""
    else:
        text = _read_from(_local_log(job, launch), start)
    sys.stdout.write(text)
    sys.stdout.flush()
    return len(text.encode())


def _local_log(job: Any, launch: Launch) -> Path:
    """Docker's container tees its output; torchx keeps that of a local process; else the libraries' own log."""
    for pattern in ("log_*.out", "**/combined.log", "**/stdout.log"):
        files = sorted(job.folder.glob(pattern), key=lambda file: file.stat().st_mtime)
        if files and files[-1].stat().st_size:
            return files[-1]
    return launch.run / "logs" / f"{job.stage}.log"


def _read_from(file: Path, start: int) -> str:
    try:
        with file.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")
    except OSError:
        return ""
