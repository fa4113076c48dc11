"""Cluster profiles: where stages run, as YAML whose keys and types are checked before anything else happens.

The dataclasses below are the schema; `clusters/` holds commented examples. Any key can be given on the command line
too, as `cluster.slurm.partition=batch`, which wins over the file.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml

from common.errors import ConfigurationError
from common.fields import from_tree
from common.values import checked_size, one_line, parse_value
from common.yaml_text import parse_yaml
from launch.executors.profile_checks import refuse_secrets, refuse_shell_text

ExecutorName = Literal["local", "docker", "slurm", "skypilot", "kubeflow"]
EXECUTORS: tuple[str, ...] = typing.get_args(ExecutorName)
STRICT = (  # not `set -e`: with it bash 5.2 leaves at a missing file that is sourced, and runs no trap
    "depth=${#BASH_SOURCE[@]}; trap '[ ${#BASH_SOURCE[@]} -gt $depth ] || "  # a script that is sourced may try things
    """{ echo "error: the setup failed at: $BASH_COMMAND: mend it in the profile" >&2; exit 1; }' ERR"""
)
OVERRIDE = "cluster."  # what an override of the profile starts with; every other one belongs to the recipe


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 04:00:00 is a time, which YAML 1.1 takes for the number 14400."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))


def _slurm_time(value: Any) -> Any:
    """Minutes, or as `sbatch --time` takes it.

    Raises:
        ConfigurationError: neither.
    """
    text = None if value is None else str(value)
    if text is not None and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}|infinite|unlimited", text, re.IGNORECASE):
        raise ConfigurationError(f"{text!r} is no time for Slurm: write minutes, HH:MM:SS or D-HH:MM:SS.")
    return text


@dataclass(frozen=True)
class Container:
    """The image that stages run in: a name for docker, kubeflow and skypilot, a name or .sqsh file for Slurm."""

    image: str | None = None
    mounts: tuple[str, ...] = ()
    """HOST:CONTAINER[:ro]. The run folder, and local models and tables that the recipe names, are mounted anyway."""


@dataclass(frozen=True)
class Ssh:
    """A login node to submit from when this machine is none."""

    host: str
    user: str
    jobs: str
    """Folder on the cluster for scripts and code, seen by its nodes."""
    identity: str | None = None
    port: int | None = None


@dataclass(frozen=True)
class SlurmCpu:
    """sbatch options of the stages that need no GPU; a missing one has the value of the other stages."""

    partition: str | None = None
    qos: str | None = None
    time: Annotated[str | None, _slurm_time] = None
    cpus_per_task: int | None = None
    mem: str | None = None


@dataclass(frozen=True)
class Slurm:
    """Options of sbatch under its own names, and how to reach it."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    time: Annotated[str, _slurm_time] = "04:00:00"
    cpus_per_task: int | None = None
    mem: str | None = None
    exclusive: bool = False
    constraint: str | None = None
    exclude: str | None = None
    comment: str | None = None
    request_gpus: Literal["gpus_per_node", "gres", "no"] = "gpus_per_node"
    """How GPUs are asked for; "no" where whole nodes are given out."""
    signal: str | None = "TERM@120"
    """Sent before the time limit, so that training saves first."""
    retries: int = 0
    """How often a failed stage is queued again by itself; preempted ones always are."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch, such as `reservation: friday`."""
    srun: tuple[str, ...] = ()
    """Further arguments of srun, such as `--mpi=pmix`."""
    cpu: SlurmCpu = SlurmCpu()
    ssh: Ssh | None = None

    def without_gpus(self) -> Slurm:
        """The options of a stage that needs none: those of `cpu` where it has some, no whole nodes, no signal."""
        own = {name: value for name, value in vars(self.cpu).items() if value is not None}
        return dataclasses.replace(self, exclusive=False, signal=None, **own)


@dataclass(frozen=True)
class Docker:
    """Options of `docker run`."""

    user: str | None = "caller"
    """`caller`: the ids of whoever launches, so that outputs are theirs; null: the image's own; or UID:GID."""
    shm_size: str | None = "16g"
    ulimits: tuple[str, ...] = ("memlock=-1:-1", "stack=67108864:67108864")
    ipc_mode: str | None = None
    network: str = "host"
    runtime: str | None = None


@dataclass(frozen=True)
class Skypilot:
    """Fields of NeMo-Run's SkypilotExecutor; runs lie in a storage mount, which every stage sees."""

    infra: str | None = None
    gpus: str | None = None
    cpus: int | None = None
    memory: int | None = None
    disk_size: int | None = None
    use_spot: bool | None = None
    cluster_name: str | None = None
    idle_minutes_to_autostop: int | None = 10
    file_mounts: dict[str, str] = field(default_factory=dict)
    storage_mounts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kubeflow:
    """Fields of NeMo-Run's KubeflowExecutor; runs lie on a claimed volume, which every stage mounts."""

    namespace: str = "default"
    runtime_ref: str = "torch-distributed"
    claim: str | None = None
    """Persistent volume claim that holds the runs; mounted where `runs` says."""
    secret: str | None = None
    """Kubernetes secret whose keys are the names in `secrets`."""
    cpus: str | None = None
    memory: str | None = None
    image_pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """One place to run."""

    executor: ExecutorName = "local"
    runs: str | None = None
    """Folder of runs, as the stages see it; --runs wins."""
    gpus_per_node: int = 0
    gpu_memory: Annotated[str | None, checked_size] = None
    """Of each GPU, such as 80GB: lets the launch check that the training fits."""
    retries: int = 0
    """How often a training that was killed, hung or lost its node is started again from its last checkpoint."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables by value; never secrets."""
    secrets: tuple[str, ...] = ()
    """Names of variables that are taken from the environment of the launch and never written down."""
    setup: str = ""
    """Shell lines before a stage, such as `module load` or activating an environment (Slurm, SkyPilot). With Slurm, one
    that fails ends the job; `|| true` behind it lets it."""
    container: Container = Container()
    slurm: Slurm = Slurm()
    docker: Docker = Docker()
    skypilot: Skypilot = Skypilot()
    kubeflow: Kubeflow = Kubeflow()

    @property
    def strict_setup(self) -> str:
        """The setup for bash, in which a command that fails is named and ends the job; empty where there is none."""
        lines = self.setup.strip("\n")
        return f"{STRICT}\n{lines}\ntrap - ERR" if lines.strip() else ""


def load_profile(file: Path | None, overrides: list[str], executor: str | None = None) -> Profile:
    """Read a profile, apply `cluster.key=value` overrides, and let `executor` win over the profile's own.

    Raises:
        ConfigurationError: no such file, not YAML, an unknown key (the near ones are named), a value of another type,
            a secret by value, or a text that a shell would take apart.
    """
    tree = _read(file) if file else {}
    source = str(file) if file else "the command line"
    for override in overrides:
        key, separator, text = override.removeprefix(OVERRIDE).partition("=")
        if not separator:
            raise ConfigurationError(f"{override!r} is no key=value: write for example cluster.slurm.partition=batch.")
        *parents, name = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigurationError(
                    f"{OVERRIDE}{key}: {parent} is a plain value in {source} and has no keys: "
                    f"set {OVERRIDE}{parent}= itself."
                )
        node[name] = parse_value(text)
    if executor is not None:
        tree["executor"] = executor
    refuse_secrets(tree, source)
    profile = from_tree(Profile, tree, source)
    refuse_shell_text(profile, source)
    return profile


def split_overrides(overrides: list[str]) -> tuple[list[str], list[str]]:
    """The overrides of the recipe, and those of the profile."""
    return (
        [text for text in overrides if not text.startswith(OVERRIDE)],
        [text for text in overrides if text.startswith(OVERRIDE)],
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(file.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigurationError(f"there is no cluster profile {file}: clusters/ of the repository has some.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ConfigurationError) as error:
        raise ConfigurationError(f"{file} cannot be read as YAML ({one_line(error)}): mend it.") from None
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{file} is no cluster profile: it should hold keys such as executor: slurm.")
    return tree
