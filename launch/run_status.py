"""How far a run is: each stage's state, from its record, its executor and its log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import LaunchError
from launch import failures, store
from launch.executors.slurm_jobs import JobState, job_states
from launch.executors.tunnel import ask, is_remote
from pipeline.run_folder import RunFolder, is_run
from pipeline.stage import Stage, details_of, is_current, stages_of
from pipeline.sweep_folder import last_stage_of, runs_of_sweep

WORDS = {
    "PENDING": "waiting",
    "COMPLETED": "done",
    "CANCELLED": "cancelled",
    "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "timed out",
    "NODE_FAIL": "lost its node",
    "PREEMPTED": "preempted",
    "REQUEUED": "waiting",
    "COMPLETING": "running",
    "CONFIGURING": "running",
}
FAILED = ("failed", "out of memory", "timed out", "lost its node", "preempted", "boot_fail", "deadline")
DECIDING = (*FAILED, "running", "waiting", "cancelled", "interrupted", "unknown", "not started")
"""States of a stage that say how far its run is, the most telling first."""


@dataclass(frozen=True)
class Row:
    """One stage of a run."""

    stage: str
    state: str
    job: str = ""
    note: str = ""

    @property
    def active(self) -> bool:
        return self.state in ("waiting", "running")

    @property
    def failed(self) -> bool:
        return self.state in FAILED


def of_run(name: str) -> list[Row]:
    """A row for each stage of a run, given as its folder or, for runs on other machines, its name.

    Raises:
        LaunchError: there is no such run.
    """
    launch = store.last_launch(name)
    run = find_run(name, launch)
    if launch and is_on_cluster(launch):
        return _of_slurm(run, launch)
    if run is None:
        raise LaunchError(f"{name} lies on another machine and its executor keeps no account: look there.")
    return _of_local(run, launch)


def of_sweep(folder: Path) -> list[Row]:
    """A row for each run of a sweep, under the run's name: its first failure, what runs, or what it waits for."""
    rows = []
    running, last = store.holder(folder) is not None, last_stage_of(folder)
    for path in runs_of_sweep(folder):
        stages = of_run(str(path))
        row = decisive(stages[: 1 + [stage.stage for stage in stages].index(last)])
        state = "waiting" if running and row.state == "not started" else row.state
        note = row.note if state == "done" else f"{row.stage} {row.note}".rstrip()
        rows.append(Row(path.name, state, row.job, note))
    return rows


def decisive(rows: Sequence[Row]) -> Row:
    """The first failed stage, else what runs or waits, else what comes next; of a finished run the evaluation."""
    for state in DECIDING:
        for row in rows:
            if row.state == state:
                return row
    return next((row for row in rows if row.stage == "evaluate"), rows[-1])


def find_run(name: str, launch: store.Launch | None) -> RunFolder | None:
    """The run folder where it can be read from here; None where only the store knows of the run.

    Raises:
        LaunchError: neither knows it.
    """
    for path in (Path(name), launch.run if launch else None):
        if path and is_run(path):
            return RunFolder.open(path.resolve())
    if launch is None:
        raise LaunchError(f"there is no run {name}: name a run folder, such as runs/gpt_oss_tiny_lora.")
    return None


def active_jobs(run: Path, tunnel: Any) -> dict[str, tuple[str, JobState]]:
    """The stages of a run's last launch on Slurm that run or wait: each one's job and its state."""
    launch = store.last_launch(run)
    jobs = {stage: job.id for stage, job in launch.jobs.items() if job.id} if launch else {}
    states = job_states(tunnel, list(jobs.values()))
    return {stage: (job, states[job]) for stage, job in jobs.items() if job in states and states[job].active}


def tunnel_of_launch(launch: store.Launch) -> Any:
    """The tunnel to where this launch's jobs were submitted."""
    return next(iter(launch.jobs.values())).executor.tunnel


def is_on_cluster(launch: store.Launch) -> bool:
    """Whether the launch's stages are jobs of Slurm."""
    return any(hasattr(job.executor, "tunnel") for job in launch.jobs.values())


def _of_slurm(run: RunFolder | None, launch: store.Launch) -> list[Row]:
    tunnel = tunnel_of_launch(launch)
    states = job_states(tunnel, [job.id for job in launch.jobs.values() if job.id])
    rows: list[Row] = []
    for stage, name in _stages(run, launch):
        job = launch.jobs.get(name)
        state = states.get(job.id) if job else None
        if run and stage and is_current(stage, run) and not (state and state.active):
            rows.append(Row(name, "done", job.id if job else "", details_of(stage, run).summary))
        elif job is None:
            rows.append(Row(name, "not started"))
        elif state is None:
            rows.append(Row(name, "unknown", job.id, "neither sacct nor scontrol knows the job any more"))
        else:
            rows.append(Row(name, _word(state), job.id, _note(state, job, launch)))
    return rows


def _stages(run: RunFolder | None, launch: store.Launch) -> list[tuple[Stage | None, str]]:
    if run:
        return [(stage, stage.name) for stage in stages_of(run.recipe)]
    return [(None, name) for name in launch.jobs]


def _word(state: JobState) -> str:
    return WORDS.get(state.name, state.name.lower())


def _note(state: JobState, job: store.Job, launch: store.Launch) -> str:
    if state.active:
        return state.note
    if state.name in ("COMPLETED", "CANCELLED"):
        return ""
    if state.name == "OUT_OF_MEMORY" or state.signal == 9 or state.exit_code == 137:
        return failures.MEMORY
    code = f"signal {state.signal}" if state.signal else f"exit status {state.exit_code}"
    tunnel = tunnel_of_launch(launch)
    logs = [str(launch.run / "logs" / f"{job.stage}.log"), *job_logs(job, tunnel)]
    for log in logs:
        text = ask(tunnel, "tail", "-c", "200000", log).out
        error = failures.last_error(text)
        if failures.out_of_memory(text):
            return failures.MEMORY
        if error:
            return f"{error} ({code}; {log})"
    return f"{code}; its log is {logs[-1]}"


def job_logs(job: store.Job, tunnel: Any) -> list[str]:
    """A Slurm job's own logs where they lie, newest first: of the stage's processes, then of its script."""
    folder = Path(tunnel.job_dir) / job.stage if is_remote(tunnel) else job.folder
    pattern = f"ls -1t {folder}/log-*_{job.id}_*.out {folder}/sbatch_*_{job.id}.out 2>/dev/null"
    return sorted(ask(tunnel, "sh", "-c", pattern).out.split(), key=lambda name: "/sbatch_" in name)


def _of_local(run: RunFolder, launch: store.Launch | None) -> list[Row]:
    running = store.holder(run.path) is not None
    rows: list[Row] = []
    stopped = False
    for stage in stages_of(run.recipe):
        if is_current(stage, run):
            rows.append(Row(stage.name, "done", note=details_of(stage, run).summary))
        elif launch is None or stage.name not in launch.jobs or stopped:
            rows.append(Row(stage.name, "waiting" if running else "not started"))
        else:
            stopped = True  # of the stages that are not done, only the first can have begun
            log = failures.read(run.log(stage.name))
            if running:
                rows.append(Row(stage.name, "running"))
            elif error := failures.last_error(log):
                rows.append(Row(stage.name, "failed", note=error))
            else:
                rows.append(Row(stage.name, "interrupted" if log else "not started"))
    return rows
