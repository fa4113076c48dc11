"""What a launch would do, to the letter, without doing it: sbatch scripts, docker arguments, commands."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from launch import store
from launch.executors import ByName, arguments_for
from launch.experiment import assembled, dependencies
from launch.profiles import Profile
from recipes.pipeline import RunFolder, Stage


def show(run: RunFolder, profile: Profile, stages: list[Stage], todo: list[Stage]) -> None:
    """Print every stage: what would be submitted for it, or that it is current."""
    print(f"run folder {run.path}")
    texts = dict(texts_of(run, profile, todo))
    for stage in stages:
        if stage not in todo:
            print(f"{stage.name}: current, skipped")
        elif profile.executor == "local":
            print(f"{stage.name}: {texts[stage.name]}")
        else:
            print(f"\n# --- {stage.name} ---\n{texts[stage.name]}")


def texts_of(run: RunFolder, profile: Profile, todo: list[Stage]) -> Iterator[tuple[str, str]]:
    """Of each stage its name and the text of what would run."""
    if profile.executor in ("skypilot", "kubeflow"):
        yield from ((stage.name, _cloud(run, profile, stage)) for stage in todo)
        return
    scratch: Path
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with assembled(run, profile, todo, base_dir=scratch) as experiment:
            if profile.executor == "slurm":
                for job in experiment.jobs:
                    job.executor.packager = _nothing()
            experiment.dryrun(log=False, delete_exp_dir=False)
            for index, stage in enumerate(todo):
                job: Any = experiment.jobs[index]
                if profile.executor == "slurm":
                    text = _slurm(job, Path(experiment._exp_dir), dependencies(profile, todo, index))
                elif profile.executor == "docker":
                    text = _docker(job)
                else:
                    text = _command(job)
                yield stage.name, text.replace(str(scratch / "experiments"), str(store.home()))


def script_of(job: Any, folder: Path) -> str:
    """The sbatch script that NeMo-Run wrote for a job."""
    return (folder / f"{job.id}_sbatch.sh").read_text()


def _nothing() -> Any:
    import nemo_run

    return nemo_run.Packager()


def _slurm(job: Any, folder: Path, after: list[str] | None) -> str:
    submit = ["sbatch", "--requeue", "--parsable"]
    if after:
        submit.append("--dependency=afterok:" + ":".join(f"<{name}>" for name in after))
    script = f"{job.executor.tunnel.job_dir}/{job.id}_sbatch.sh"
    return f"# {' '.join([*submit, script])}\n{script_of(job, folder)}"


def _command(job: Any) -> str:
    role = job._executable.roles[0]
    return " ".join([role.entrypoint, *role.args])


class _Recorder:
    """A docker client that only keeps what NeMo-Run would have it run."""

    def __init__(self) -> None:
        self.containers = self.networks = self
        self.calls: list[tuple[str, str, dict[str, Any]]] = []

    def run(self, image: str, command: str, **options: Any) -> None:
        self.calls.append((image, command, options))

    def create(self, **options: Any) -> None:
        """A network; nothing of it belongs into the arguments of a container."""


def _docker(job: Any) -> str:
    request = job._dryrun_info.request
    client = _Recorder()
    # as NeMo-Run's scheduler does on starting (nemo_run 0.11.1, schedulers/docker.py, `schedule`)
    request.executor.volumes.append(f"{request.executor.job_dir}:/nemo_run")
    request.run(client)
    image, command, options = client.calls[0]
    return " \\\n  ".join(["docker run", *_docker_options(options), image, command.replace(request.id, "<id>")])


def _docker_options(options: dict[str, Any]) -> Iterator[str]:
    """What the docker SDK is given, as `docker run` would be told the same."""
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


def _cloud(run: RunFolder, profile: Profile, stage: Stage) -> str:
    cls, arguments = arguments_for(profile, run, stage)
    launcher = arguments.pop("launcher", None)
    arguments.pop("packager", None)
    start = ["python"]
    if launcher is not None:
        start = ["torchrun", "--nnodes", str(run.recipe.nodes), "--nproc-per-node", str(run.recipe.processes)]
    command = shlex.join([*start, "-m", "recipes.stage", str(run.path), stage.name])
    given = {name: value for name, value in arguments.items() if value not in (None, [], {}, "")}
    return f"# {command}\n" + yaml.safe_dump({cls: given}, sort_keys=False, width=120).rstrip("\n")
