"""One stage of a run in a process of its own: `python -m stages RUN_FOLDER STAGE`.

Executors start it, alone or once a rank under torchrun. The console shows what a person wants to read; everything that
the libraries print goes to `logs/STAGE.log` in the run folder. A stage is recorded as done when its output is whole.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import NoReturn

from common.console import ignore_other_launchers, rank, say, send_libraries_to
from common.disk import problem_of
from common.errors import LaunchError, NemoRunError
from pipeline import resume
from pipeline.run_folder import LAUNCHER, RESTARTS, RunFolder
from pipeline.stage import Details, Stage, is_current, record, stage_named

INTERRUPTED = 143  # 128 + SIGTERM
# A stage loads only what it needs: NeMo takes ten seconds.
BODIES = {
    "model": "stages.model:make_model",
    "prepare": "stages.prepare:prepare_tickets",
    "import": "stages.import_base:import_weights",
    "pretrain": "stages.pretrain:pretrain_base",
    "finetune": "stages.finetune:finetune_model",
    "evaluate": "stages.evaluate:evaluate_models",
    "export": "stages.export:export_model",
}


def run_stage(run: RunFolder, stage: Stage) -> None:
    """Run the stage's body in this process and, on rank 0, record its output.

    Raises:
        LaunchError: a stage whose output this one reads is not done.
    """
    for name in stage.after:
        before = stage_named(name)
        if before.wanted(run.recipe) and not is_current(before, run):
            raise LaunchError(
                f"stage {stage.name} needs {before.output(run)}, which stage {name} has not finished: "
                f"launch it again with --from {name}."
            )
    if is_current(stage, run):  # Slurm queued it again after its end, or the launching machine could not see the run
        say(f"{stage.name}: current, skipped")
        return
    resume.check(run, stage)
    if rank() == 0:
        resume.begin(run, stage)
    started = time.perf_counter()
    details: Details = resolve_name(BODIES[stage.name])(run)
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or os.environ.get(RESTARTS, "0"))
    details = replace(details, seconds=round(time.perf_counter() - started, 1), restarts=restarts)
    if rank() == 0:
        record(stage, run, details)
        say(f"{stage.name}: {details.made} in {details.seconds:.1f} s → {os.path.relpath(stage.output(run))}")


def _end_with_launcher() -> None:
    """End this process when the launcher that waits for it is gone: kill -9 of the one must not leave the others.

    Only local runs name a launcher; a job of a cluster outlives the shell that submitted it.
    """
    launcher = int(os.environ.get(LAUNCHER, "0"))
    if not launcher:
        return

    parent = os.getppid()  # torchrun, where there is one: without it nobody would end this rank

    def watch() -> None:
        while True:
            time.sleep(1)
            try:
                os.kill(launcher, 0)
            except ProcessLookupError:
                _exit(1)
            if os.getppid() != parent:
                _exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _exit(status: int) -> NoReturn:
    """End at once, and with it the processes that libraries started, such as Megatron's checkpoint writers."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(status)


def main() -> int:
    """Run `RUN_FOLDER STAGE` from the command line; 0 when the stage is done, 1 otherwise."""
    path, name = sys.argv[1:3]
    _end_with_launcher()
    ignore_other_launchers()
    run = RunFolder.open(Path(path))
    try:
        send_libraries_to(run.log(name, rank()))
        run_stage(run, stage_named(name))
    except NemoRunError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except SystemExit:  # how NeMo's preemption callback ends a training whose checkpoint it has saved
        print(f"error: stage {name} was told to stop; its checkpoint is saved.", file=sys.stderr, flush=True)
        _exit(INTERRUPTED)
    except BaseException as error:
        with suppress(OSError):  # the log may stand on the disk that is full
            traceback.print_exc()
            if said := problem_of(error, run.path):
                print(f"error: {said}", file=sys.stderr, flush=True)
        sys.stderr.flush()
        # Peers wait for this rank in a collective; interpreter shutdown would wait for them.
        _exit(1)
    finally:
        with suppress(ValueError, OSError):
            sys.stderr.flush()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Skip interpreter shutdown: gloo's threads and NeMo's telemetry can hold it for seconds.
    _exit(status)
