"""The exact texts of a launch without starting it: sbatch scripts, docker arguments, commands."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from launch import store
from launch.executors.build import ENTRY, ByName, arguments_for
from launch.experiment import assembled
from launch.launch_plan import LaunchPlan
from pipeline.stage import Stage


def show(plan: LaunchPlan) -> None:
    """Print every stage: what would be submitted for it, or that it is current."""
    print(f"run folder {plan.run.path}")
    texts = dict(texts_of(plan))
    for stage in plan.stages:
        if maker := plan.makers.get(stage.name):
            print(f"{stage.name}: made by {maker}")
        elif stage not in plan.todo:
            print(f"{stage.name}: current, skipped")
        elif plan.profile.executor == "local":
            print(f"{stage.name}: {texts[stage.name]}")
        else:
            print(f"\n# --- {stage.name} ---\n{texts[stage.name]}")


def texts_of(plan: LaunchPlan) -> Iterator[tuple[str, str]]:
    """Of each stage to be done its name and the text of what would run."""
    executor = plan.profile.executor
    if executor in ("skypilot", "kubeflow"):
        yield from ((stage.name, _cloud(plan, stage)) for stage in plan.todo)
        return
    with tempfile.TemporaryDirectory() as scratch, assembled(plan, base_dir=Path(scratch)) as experiment:
        if executor == "slurm":
            for job in experiment.jobs:
                job.executor.packager = _nothing()
        experiment.dryrun(log=False, delete_exp_dir=False)
        for stage, job in zip(plan.todo, experiment.jobs, strict=True):
            if executor == "slurm":
                text = _slurm(job, Path(experiment._exp_dir), plan.dependencies(stage))
            else:
                text = _docker(job) if executor == "docker" else _command(job)
            yield stage.name, text.replace(f"{scratch}/experiments", str(store.home()))


def script_of(job: Any, folder: Path) -> str:
    """The sbatch script that NeMo-Run wrote for a job."""
    return (folder / f"{job.id}_sbatch.sh").read_text()


def _nothing() -> Any:
    import nemo_run

    return nemo_run.Packager()


def _slurm(job: Any, folder: Path, after: list[str]) -> str:
    submit = ["sbatch", "--requeue", "--parsable"]
    if after:
        submit.append(f"--dependency={job.executor.dependency_type}:" + ":".join(f"<{name}>" for name in after))
    script = f"{job.executor.tunnel.job_dir}/{job.id}_sbatch.sh"
    return f"# {' '.join([*submit, script])}\n{script_of(job, folder)}"


def _command(job: Any) -> str:
    role = job._executable.roles[0]
    return " ".join([role.entrypoint, *role.args])


class _Recorder:
    """A docker client that records the calls of NeMo-Run and runs nothing."""

    def __init__(self) -> None:
        self.containers = self.networks = self
        self.calls: list[tuple[str, str, dict[str, Any]]] = []

    def run(self, image: str, command: str, **options: Any) -> None:
        self.calls.append((image, command, options))

    def create(self, **options: Any) -> None:
        """Create no network: a container's arguments name it and need nothing else of it."""


def _docker(job: Any) -> str:
    request = job._dryrun_info.request
    client = _Recorder()
    # as NeMo-Run's scheduler does on starting (nemo_run 0.11.1, schedulers/docker.py, `schedule`)
    request.executor.volumes.append(f"{request.executor.job_dir}:/nemo_run")
    request.run(client)
    image, command, options = client.calls[0]
    return " \\\n  ".join(["docker run", *_docker_options(options), image, command.replace(request.id, "<id>")])


def _docker_options(options: dict[str, Any]) -> Iterator[str]:
    """The docker SDK's arguments as options of `docker run`."""
    yield "--detach --rm"
    for name, key in (("name", "name"), ("hostname", "hostname"), ("network", "network"), ("workdir", "working_dir")):
        yield f"--{name} {options[key]}"
    for name, key in (("user", "user"), ("runtime", "runtime"), ("shm-size", "shm_size"), ("ipc", "ipc_mode")):
        if options.get(key):
            yield f"--{name} {options[key]}"
    for host, address in options["extra_hosts"].items():
        yield f"--add-host {host}:{address}"
    for request in options.get("device_requests", []):
        yield f"--gpus {request['Count']}"
    for limit in options.get("ulimits") or []:
        yield f"--ulimit {limit['Name']}={limit['Soft']}:{limit['Hard']}"
    for volume in options["volumes"]:
        yield f"--volume {volume}"
    for name, value in options["labels"].items():
        yield f"--label {name}={value if name != 'nemo-run/id' else '<id>'}"
    for name, value in options["environment"].items():
        yield f"--env {name}" if isinstance(value, ByName) else f"--env {name}={shlex.quote(value)}"


def _cloud(plan: LaunchPlan, stage: Stage) -> str:
    cls, arguments = arguments_for(plan, stage)
    launcher, resources = arguments.pop("launcher", None), plan.resources(stage)
    arguments.pop("packager", None)
    start = ["python"]
    if launcher is not None:
        start = ["torchrun", "--nnodes", str(resources.nodes), "--nproc-per-node", str(resources.processes)]
    command = shlex.join([*start, "-m", ENTRY, str(plan.run.path), stage.name])
    given = {name: value for name, value in arguments.items() if value not in (None, [], {}, "")}
    return f"# {command}\n" + yaml.safe_dump({cls: given}, sort_keys=False, width=120).rstrip("\n")
