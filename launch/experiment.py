"""A launch as one NeMo-Run experiment: a task for each stage that must run, in the order of what each reads."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import LaunchError
from common.values import one_line
from launch import failures, store
from launch.executors.build import executor_for, script_for
from launch.launch_plan import LaunchPlan
from pipeline.run_folder import LAUNCHER
from pipeline.stage import Stage, is_current, record_of

if TYPE_CHECKING:
    import nemo_run


def execute(plan: LaunchPlan) -> None:
    """Run stages one after the other and wait for them; a training that died is started again, `retries` times.

    Raises:
        LaunchError: a stage failed; the stages after it did not run.
    """
    os.environ[LAUNCHER] = str(os.getpid())
    # torchrun and python of this environment, also where it is not activated
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    left = plan.profile.retries
    with store.locked(plan.run.path):
        while failed := _run_once(plan):
            stage = failed[0]
            if not left or not stage.trains or failures.is_told(plan.run, stage.name):
                raise LaunchError(failures.sentence(plan.run, stage.name))
            left -= 1
            restarts = plan.profile.retries - left
            print(f"{stage.name}: died, restart {restarts} of {plan.profile.retries}", flush=True)
            plan = replace(plan, todo=failed, restarts=restarts)


def _run_once(plan: LaunchPlan) -> tuple[Stage, ...]:
    """Run the stages; returns those that are not done, the failed one first."""
    started = time.time()
    with assembled(plan) as experiment:
        try:
            with _stopped_by_interrupt(experiment):
                experiment.run()
        except Exception as error:
            if not type(error).__module__.startswith(("docker.", "requests.")):  # not imported only to be named
                raise
            raise LaunchError(f"docker refused a container ({one_line(error)}): change the profile.") from None
    for number, stage in enumerate(plan.todo):
        record = record_of(stage, plan.run)
        if not is_current(stage, plan.run) or record.stat().st_mtime < started - 1:
            return plan.todo[number:]
    return ()


@contextmanager
def _stopped_by_interrupt(experiment: nemo_run.Experiment) -> Iterator[None]:
    """Let SIGINT stop the stage that runs: NeMo-Run's own threads would wait for its end."""

    def stop(number: int, frame: object) -> None:
        begun = [job.id for job in experiment.jobs if job.launched]
        if begun:
            experiment.cancel(begun[-1])
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def submit(plan: LaunchPlan) -> dict[str, str]:
    """Hand the stages to Slurm, each after those that it reads, and return their job ids.

    Raises:
        LaunchError: sbatch refused one; those before it are cancelled.
    """
    from invoke.exceptions import UnexpectedExit

    with assembled(plan) as experiment:
        try:
            experiment.run(detach=True)
        except UnexpectedExit as error:
            for job in experiment.jobs:
                experiment.cancel(job.id)
            lines = error.result.stderr.strip().splitlines() or ["it gave no reason"]
            raise LaunchError(f"Slurm refused {error.result.command!r}: {lines[-1]}") from None
        return {job.id: job.handle.partition("://")[2].split("/")[1] for job in experiment.jobs}


@contextmanager
def assembled(plan: LaunchPlan, base_dir: Path | None = None) -> Iterator[nemo_run.Experiment]:
    """The experiment of the stages to be done, not started; `base_dir` is NeMo-Run's home unless given."""
    import nemo_run
    from nemo_run.core.frontend.console.api import CONSOLE

    CONSOLE.quiet = True  # clean_mode does not reach the executors' own messages
    with nemo_run.Experiment(
        plan.run.path.name,
        id=store.next_id(plan.run.path.name),
        base_dir=str(base_dir) if base_dir else None,
        log_level="ERROR",
        clean_mode=True,
        enable_goodbye_message=False,
        skip_status_at_exit=True,
        serialize_metadata_for_scripts=False,
    ) as experiment:
        for stage in plan.todo:
            experiment.add(
                script_for(plan, stage),
                executor=executor_for(plan, stage),
                name=stage.name,
                dependencies=plan.dependencies(stage) or None,
                tail_logs=plan.profile.executor != "slurm",
            )
            if plan.profile.executor == "docker":
                _resolve_itself(experiment.jobs[-1].executor, stage)
        yield experiment


def _resolve_itself(executor: Any, stage: Stage) -> None:
    """Let the container find its own name: NeMo-Run gives it one (nemo_run 0.11.1, docker.py, `DockerContainer.run`),
    which on the host's network nobody knows, and torchrun's workers meet under it."""
    name = f"{executor.experiment_id}_{stage.name}".replace("_", "-")[-32:]
    executor.additional_kwargs["extra_hosts"] = {name: "127.0.0.1"}
