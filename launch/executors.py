"""From a cluster profile and a stage to NeMo-Run's own executors, one function for each kind."""

from __future__ import annotations

import os
import shlex
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import LaunchError
from launch.profiles import Profile
from recipes.pipeline import RunFolder, Stage

if TYPE_CHECKING:
    import nemo_run

QUIET = {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
MISSING_CLOUD = {"skypilot": "skypilot", "kubeflow": "kubernetes"}


@dataclass(frozen=True)
class ByName:
    """The value of an environment variable, known only by its name until it is put into a request.

    docker's API takes values only, and NeMo-Run stores executors as files. Stored and printed this is a name;
    formatted into a string, as the docker SDK does on sending, it is the value.
    """

    name: str

    def __format__(self, spec: str) -> str:
        return format(os.environ.get(self.name, ""), spec)


def script_for(run: RunFolder, stage: Stage) -> nemo_run.Script:
    """The stage as a NeMo-Run task: `python -m recipes.stage RUN STAGE`."""
    import nemo_run

    return nemo_run.Script(
        path="recipes.stage",
        m=True,
        entrypoint="python",
        args=[str(run.path), stage.name],
        env={"LOGLEVEL": "ERROR"},  # torchrun's; NeMo-Run would set INFO
    )


def executor_for(profile: Profile, run: RunFolder, stage: Stage) -> Any:
    """The NeMo-Run executor of a stage.

    Raises:
        LaunchError: the cloud's client is not installed, or not configured.
    """
    import nemo_run

    cls, arguments = arguments_for(profile, run, stage)
    try:
        return getattr(nemo_run, cls)(**arguments)
    except (AssertionError, ImportError) as error:
        extra = MISSING_CLOUD.get(profile.executor, profile.executor)
        raise LaunchError(f"{profile.executor} is not installed ({error}): pip install {extra}.") from None
    except Exception as error:
        if type(error).__name__ != "ConfigException":  # kubernetes.config's; the package need not be installed
            raise
        raise LaunchError(f"no Kubernetes cluster is configured ({error}): set KUBECONFIG.") from None


def arguments_for(profile: Profile, run: RunFolder, stage: Stage) -> tuple[str, dict[str, Any]]:
    """Name of the NeMo-Run class and its arguments."""
    return _ARGUMENTS[profile.executor](profile, run, stage)


def environment_of(profile: Profile, run: RunFolder, stage: Stage) -> dict[str, str]:
    """Variables of a stage by value: the package's own, then the profile's."""
    # glibc gives every large tensor back to the kernel, which then clears its pages anew: a third of the time that a
    # CPU run takes at 512 tokens. These keep freed memory in the process.
    keep = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30)} if run.recipe.model.toy else {}
    return {**QUIET, **keep, **profile.environment}


def gpus_of(profile: Profile, run: RunFolder, stage: Stage) -> int:
    """GPUs a node that the stage gets; a rehearsal trains on CPUs, also where there are GPUs."""
    return run.recipe.processes if stage.trains and profile.gpus_per_node and not run.recipe.model.toy else 0


def mounts_of(profile: Profile, run: RunFolder) -> list[str]:
    """The profile's mounts, then the runs and every local path that the recipe names, where it stands outside."""
    mounts = list(profile.container.mounts)
    for path, options in ((run.path.parent, ""), *((path, ":ro") for path in local_inputs(run))):
        if not _is_mounted(path, mounts):
            mounts.append(f"{path}:{path}{options}")
    if run.base.parent != run.path and not _is_mounted(run.base.parent, mounts):
        mounts.append(f"{run.base.parent}:{run.base.parent}")
    return mounts


def local_inputs(run: RunFolder) -> list[Path]:
    """Files and folders that the recipe reads and that no stage makes."""
    named = [run.recipe.data.source] if run.recipe.model.toy else [run.recipe.model.hf, run.recipe.data.source]
    return [Path(name) for name in named if str(name).startswith("/")]


def torchrun(run: RunFolder) -> Any:
    """NeMo-Run's torchrun launcher at a rendezvous of this run's own, the same at every launch."""
    import nemo_run

    number = zlib.crc32(run.path.name.encode())
    return nemo_run.Torchrun(rdzv_id=number % 10_000, rdzv_port=20_000 + number % 10_000)


def _is_mounted(path: Path, mounts: list[str]) -> bool:
    """Whether a mount shows `path` under the same name."""
    for mount in mounts:
        host, inside, *_ = [*mount.split(":"), ""]
        if host == inside and path.is_relative_to(host):
            return True
    return False


def _local(profile: Profile, run: RunFolder, stage: Stage) -> tuple[str, dict[str, Any]]:
    processes = run.recipe.processes if stage.trains else 1
    return "LocalExecutor", {
        "ntasks_per_node": processes,
        "launcher": torchrun(run) if processes > 1 else None,
        "env_vars": {"PYTHONUNBUFFERED": "1", "LOGLEVEL": "ERROR", **environment_of(profile, run, stage)},
    }


def _docker(profile: Profile, run: RunFolder, stage: Stage) -> tuple[str, dict[str, Any]]:
    from launch.packaging import CodePackager

    docker = profile.docker
    processes = run.recipe.processes if stage.trains else 1
    environment = {"PYTHONUNBUFFERED": "1", **environment_of(profile, run, stage)}
    more: dict[str, Any] = {}
    if docker.user:
        more["user"] = f"{os.getuid()}:{os.getgid()}" if docker.user == "caller" else docker.user
        # An id that the image does not know has neither a home nor a name; caches of torch and Triton want both.
        environment = {"HOME": "/tmp", "USER": "nemo", **environment}
    return "DockerExecutor", {
        "container_image": profile.container.image or "",
        "ntasks_per_node": processes,
        "launcher": torchrun(run) if processes > 1 else None,
        "num_gpus": gpus_of(profile, run, stage) or None,
        "shm_size": docker.shm_size,
        "ulimits": [limit.replace("=", ":", 1) for limit in docker.ulimits],
        "ipc_mode": docker.ipc_mode,
        "network": docker.network,
        "runtime": docker.runtime,
        "volumes": mounts_of(profile, run),
        "env_vars": {**environment, **{name: ByName(name) for name in profile.secrets}},
        "additional_kwargs": more,
        "packager": CodePackager(),
    }


def _slurm(profile: Profile, run: RunFolder, stage: Stage) -> tuple[str, dict[str, Any]]:
    from launch.login import tunnel_of
    from launch.packaging import CodePackager

    slurm, cpu = profile.slurm, profile.slurm.cpu
    gpus = gpus_of(profile, run, stage)
    on_cpu = not stage.trains
    image = profile.container.image
    environment = environment_of(profile, run, stage)
    further = {name.replace("-", "_"): value for name, value in slurm.sbatch.items()}
    further["kill_on_invalid_dep"] = "yes"  # else what follows a failed stage waits for ever
    arguments: dict[str, Any] = {
        "account": slurm.account,
        "partition": (on_cpu and cpu.partition) or slurm.partition,
        "qos": (on_cpu and cpu.qos) or slurm.qos,
        "time": (on_cpu and cpu.time) or slurm.time,
        "mem": (on_cpu and cpu.mem) or slurm.mem,
        "cpus_per_task": (on_cpu and cpu.cpus_per_task) or slurm.cpus_per_task,
        "constraint": slurm.constraint,
        "exclude": slurm.exclude,
        "comment": slurm.comment,
        "exclusive": (slurm.exclusive and stage.trains) or None,
        "signal": slurm.signal if stage.trains else None,
        "retries": slurm.retries,
        "nodes": run.recipe.nodes if stage.trains else 1,
        "ntasks_per_node": 1,
        "job_name_prefix": f"{run.path.name}.",
        "additional_parameters": further,
        "srun_args": list(slurm.srun) or None,
        # NeMo-Run writes `export NAME=value` as it is
        "env_vars": {name: shlex.quote(value) for name, value in environment.items()},
        "setup_lines": _setup(profile),
        "tunnel": tunnel_of(profile),
        "packager": CodePackager(),
        "poll_estimated_start_time": False,
    }
    if stage.trains:
        # always torchrun, also for one process: it, and not Slurm's variables, tells Lightning its rank
        arguments |= {"launcher": torchrun(run), "torchrun_nproc_per_node": run.recipe.processes}
    if gpus and slurm.request_gpus == "gres":
        arguments["gres"] = f"gpu:{gpus}"
    elif gpus and slurm.request_gpus == "gpus_per_node":
        arguments["gpus_per_node"] = gpus
    if image:
        arguments |= {
            "container_image": image,
            "container_mounts": mounts_of(profile, run),
            "container_env": [*environment, *profile.secrets],
        }
    return "SlurmExecutor", arguments


def _setup(profile: Profile) -> str | None:
    """The profile's lines; else, without a container and on the login node, the environment that launches."""
    if profile.setup or profile.container.image or profile.slurm.ssh:
        return profile.setup.rstrip("\n") or None
    return f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'


def _skypilot(profile: Profile, run: RunFolder, stage: Stage) -> tuple[str, dict[str, Any]]:
    sky = profile.skypilot
    gpus = gpus_of(profile, run, stage)
    return "SkypilotExecutor", {
        "container_image": profile.container.image,
        "infra": sky.infra,
        "gpus": sky.gpus if gpus else None,
        "gpus_per_node": gpus or None,
        "cpus": sky.cpus,
        "memory": sky.memory,
        "disk_size": sky.disk_size,
        "use_spot": sky.use_spot,
        "num_nodes": run.recipe.nodes if stage.trains else 1,
        "cluster_name": sky.cluster_name,
        "idle_minutes_to_autostop": sky.idle_minutes_to_autostop,
        "file_mounts": dict(sky.file_mounts) or None,
        "storage_mounts": dict(sky.storage_mounts) or None,
        "setup": profile.setup or None,
        "launcher": torchrun(run) if stage.trains else None,
        "torchrun_nproc_per_node": run.recipe.processes if stage.trains else None,
        "env_vars": environment_of(profile, run, stage),
        # its packager must be the one that archives the last commit
    }


def _kubeflow(profile: Profile, run: RunFolder, stage: Stage) -> tuple[str, dict[str, Any]]:
    from launch.packaging import CodePackager

    kube = profile.kubeflow
    gpus = gpus_of(profile, run, stage)
    arguments: dict[str, Any] = {
        "image": profile.container.image or "",
        "namespace": kube.namespace,
        "runtime_ref": kube.runtime_ref,
        "num_nodes": run.recipe.nodes if stage.trains else 1,
        "nprocs_per_node": run.recipe.processes if stage.trains else 1,
        "gpus_per_node": gpus or None,
        "cpu_requests": kube.cpus,
        "memory_requests": kube.memory,
        "image_pull_secrets": list(kube.image_pull_secrets),
        "env_vars": environment_of(profile, run, stage),
        "env_list": [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": kube.secret, "key": name}}}
            for name in profile.secrets
        ],
        "launcher": torchrun(run) if stage.trains else None,
        "packager": CodePackager(),
    }
    if kube.claim:
        claim = {"name": "runs", "persistentVolumeClaim": {"claimName": kube.claim}}
        arguments |= {
            "volumes": [claim],
            "volume_mounts": [{"name": "runs", "mountPath": str(run.path.parent)}],
            "workdir_pvc": kube.claim,
            "workdir_pvc_path": str(run.path.parent),
        }
    return "KubeflowExecutor", arguments


_ARGUMENTS: dict[str, Callable[[Profile, RunFolder, Stage], tuple[str, dict[str, Any]]]] = {
    "local": _local,
    "docker": _docker,
    "slurm": _slurm,
    "skypilot": _skypilot,
    "kubeflow": _kubeflow,
}
