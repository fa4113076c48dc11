"""How a server is started where a profile says: one command that runs as long as the server does."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from common.errors import ConfigurationError
from launch.executors.profiles import Profile

IMAGE = "vllm/vllm-openai:v0.32.0"
NODE = "nemo-run: the server's node is "
"""What a job of Slurm prints before its server starts."""
KEY = "VLLM_API_KEY"
"""Variable from which vLLM takes the key that its callers must bring."""


@dataclass(frozen=True)
class Server:
    """What is to run.

    Attributes:
        command: vLLM's command line.
        environment: variables by value.
        secrets: names of variables whose values go along unwritten.
        folders: what it reads.
        gpus: how many it takes.
    """

    command: list[str]
    host: str
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    folders: Sequence[Path] = ()
    gpus: int = 0
    name: str = "tickets"


def command_for(profile: Profile, server: Server, image: str | None) -> list[str]:
    """The command that runs the server in the foreground; a signal to it ends the server.

    Raises:
        ConfigurationError: the profile's executor serves nothing.
    """
    if profile.executor not in _COMMANDS:
        raise ConfigurationError(f"{profile.executor} runs no server here: choose {', '.join(_COMMANDS)}.")
    return _COMMANDS[profile.executor](profile, server, image)


def _local(profile: Profile, server: Server, image: str | None) -> list[str]:
    return server.command


def _docker(profile: Profile, server: Server, image: str | None) -> list[str]:
    docker = profile.docker
    words = ["docker", "run", "--rm", "--name", _container(server), "--network", docker.network]
    words += ["--gpus", str(server.gpus)] if server.gpus else []
    words += ["--shm-size", docker.shm_size] if docker.shm_size else []
    words += ["--ipc", docker.ipc_mode] if docker.ipc_mode else []
    if docker.network != "host":
        words += ["--publish", f"{server.port}:{server.port}"]
    for folder in server.folders:
        words += ["--volume", f"{folder}:{folder}:ro"]
    for mount in profile.container.mounts:
        words += ["--volume", mount]
    for name, value in server.environment.items():
        words += ["--env", f"{name}={value}"]
    for name in server.secrets:
        words += ["--env", name]
    return [*words, "--entrypoint", server.command[0], image or IMAGE, *server.command[1:]]


def _slurm(profile: Profile, server: Server, image: str | None) -> list[str]:
    slurm = profile.slurm
    if slurm.ssh is not None:
        raise ConfigurationError("a server is not started over ssh: call nemo-run serve on the login node.")
    options: dict[str, Any] = {
        "job-name": f"serve-{server.name}",
        "nodes": 1,
        "ntasks": 1,
        "account": slurm.account,
        "partition": slurm.partition,
        "qos": slurm.qos,
        "time": slurm.time,
        "cpus-per-task": slurm.cpus_per_task,
        "mem": slurm.mem,
        "constraint": slurm.constraint,
        "exclude": slurm.exclude,
        **slurm.sbatch,
    }
    if server.gpus and slurm.request_gpus == "gres":
        options["gres"] = f"gpu:{server.gpus}"
    elif server.gpus and slurm.request_gpus == "gpus_per_node":
        options["gpus-per-node"] = server.gpus
    words = ["srun", "--unbuffered", "--kill-on-bad-exit=1", *slurm.srun]
    words += [f"--{name}={value}" for name, value in options.items() if value is not None]
    words += ["--exclusive"] if slurm.exclusive else []
    if profile.container.image or image:
        mounts = [f"{folder}:{folder}:ro" for folder in server.folders] + list(profile.container.mounts)
        words += [f"--container-image={image or IMAGE}", f"--container-mounts={','.join(mounts)}"]
        words += [f"--container-env={','.join([*server.environment, *server.secrets])}"]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in server.environment.items()]
    setup = [] if profile.container.image or image else [profile.strict_setup]
    lines = [*setup, *exports, f'echo "{NODE}$(hostname)"', f"exec {shlex.join(server.command)}"]
    return [*words, "bash", "-c", "\n".join(line for line in lines if line)]


def _skypilot(profile: Profile, server: Server, image: str | None) -> list[str]:
    """The task goes as a file, since the command line has no place for most of it."""
    task = Path(tempfile.gettempdir()) / f"{cluster_of(profile, server)}.yaml"
    return ["sky", "launch", "--yes", "--cluster", cluster_of(profile, server), str(task)]


def cluster_of(profile: Profile, server: Server) -> str:
    """Name of the SkyPilot cluster of a server: its own, so that ending one takes down no runs."""
    return f"{profile.skypilot.cluster_name or 'gpt-oss'}-serve-{server.port}"


def url_of(profile: Profile, server: Server, node: str) -> str | None:
    """Where a running server answers, None as long as nobody knows.

    Args:
        node: the name that a job of Slurm has printed.
    """
    if profile.executor == "slurm":
        return f"http://{node}:{server.port}" if node else None
    if profile.executor == "skypilot":
        asked = ["sky", "status", "--endpoint", str(server.port), cluster_of(profile, server)]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        text = answer.stdout.strip().rpartition("\n")[2]
        return (text if "://" in text else f"http://{text}") if answer.returncode == 0 and text else None
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{server.port}"


def ending_of(profile: Profile, server: Server) -> list[str] | None:
    """The command that takes away what the end of the first command may have left."""
    if profile.executor == "docker":
        return ["docker", "rm", "--force", _container(server)]
    return ["sky", "down", "--yes", cluster_of(profile, server)] if profile.executor == "skypilot" else None


def _container(server: Server) -> str:
    return f"nemo-run-serve-{server.port}"


def skypilot_task(profile: Profile, server: Server, image: str | None) -> str:
    """The YAML of a SkyPilot task that serves."""
    sky = profile.skypilot
    resources: dict[str, Any] = {
        "infra": sky.infra,
        "accelerators": f"{sky.gpus}:{server.gpus}" if sky.gpus and server.gpus else sky.gpus,
        "disk_size": sky.disk_size,
        "use_spot": sky.use_spot,
        "image_id": f"docker:{image or IMAGE}",
        "ports": server.port,
    }
    task: dict[str, Any] = {
        "name": server.name,
        "resources": {name: value for name, value in resources.items() if value is not None},
        "envs": server.environment,
        "secrets": dict.fromkeys(server.secrets),
        "file_mounts": {str(folder): str(folder) for folder in server.folders} | profile.skypilot.storage_mounts,
        "run": shlex.join(server.command) + "\n",
    }
    return yaml.safe_dump({name: value for name, value in task.items() if value}, sort_keys=False)


_COMMANDS: dict[str, Callable[[Profile, Server, str | None], list[str]]] = {
    "local": _local,
    "docker": _docker,
    "slurm": _slurm,
    "skypilot": _skypilot,
}


def secrets_of(profile: Profile) -> tuple[str, ...]:
    """The profile's, and the server's key where the caller's environment has one."""
    return (*profile.secrets, *([KEY] if KEY in os.environ else []))
