"""From a plan and a stage to NeMo-Run's own executors, one function for each kind."""

from __future__ import annotations

import os
import shlex
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import LaunchError
from launch.executors.profiles import Profile
from launch.executors.tunnel import tunnel_of
from launch.launch_plan import LaunchPlan, Resources
from pipeline.run_folder import RESTARTS
from pipeline.stage import Stage

if TYPE_CHECKING:
    import nemo_run

ENTRY = "stages"
"""Module that a stage's process starts with."""
AFTER = "afterok"
"""How a Slurm job depends on those whose output it reads."""
QUIET = {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
MISSING_CLOUD = {"skypilot": "skypilot", "kubeflow": "kubernetes"}
Arguments = dict[str, Any]


@dataclass(frozen=True)
class ByName:
    """An environment variable by name; its value appears only in a request to docker.

    docker's API takes values only, and NeMo-Run stores executors as files. Stored and printed this is a name;
    formatted into a string, as the docker SDK does on sending, it is the value.
    """

    name: str

    def __format__(self, spec: str) -> str:
        return format(os.environ.get(self.name, ""), spec)


def script_for(plan: LaunchPlan, stage: Stage) -> nemo_run.Script:
    """The stage as a NeMo-Run task: `python -m stages RUN STAGE`."""
    import nemo_run

    return nemo_run.Script(
        path=ENTRY,
        m=True,
        entrypoint="python",
        args=[str(plan.run.path), stage.name],
        env={"LOGLEVEL": "ERROR"},  # torchrun's; NeMo-Run would set INFO
    )


def executor_for(plan: LaunchPlan, stage: Stage) -> Any:
    """The NeMo-Run executor of a stage.

    Raises:
        LaunchError: the cloud's client is not installed, or not configured.
    """
    import nemo_run

    cls, arguments = arguments_for(plan, stage)
    kind = plan.profile.executor
    try:
        return getattr(nemo_run, cls)(**arguments)
    except (AssertionError, ImportError) as error:
        extra = MISSING_CLOUD.get(kind, kind)
        raise LaunchError(f"{kind} is not installed ({error}): pip install {extra}.") from None
    except Exception as error:
        if type(error).__name__ != "ConfigException":  # kubernetes.config's; the package need not be installed
            raise
        raise LaunchError(f"no Kubernetes cluster is configured ({error}): set KUBECONFIG.") from None


def arguments_for(plan: LaunchPlan, stage: Stage) -> tuple[str, Arguments]:
    """Name of the NeMo-Run class and its arguments."""
    cls, arguments = _ARGUMENTS[plan.profile.executor]
    return cls, arguments(plan, plan.profile, plan.resources(stage)) | _waiting(plan, stage)


def _waiting(plan: LaunchPlan, stage: Stage) -> Arguments:
    """How a Slurm job waits for those of other runs: by its script, or in front of the jobs of this launch.

    NeMo-Run knows only those (nemo_run 0.11.1, `Experiment._run_dag`), and its command line wins over the script.
    """
    waits = plan.waits.get(stage.name)
    if waits is None or plan.profile.executor != "slurm":
        return {}
    if plan.dependencies(stage):
        return {"dependency_type": f"{waits},{AFTER}"}
    return {"additional_parameters": _additional(plan.profile) | {"dependency": waits}}


def _environment(plan: LaunchPlan) -> dict[str, str]:
    """Variables of a stage by value: the package's own, then the profile's."""
    # glibc gives every large tensor back to the kernel, which then clears its pages anew: a third of the time that a
    # CPU run takes at 512 tokens. These keep freed memory in the process.
    keep = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30)} if plan.recipe.model.toy else {}
    restarts = {RESTARTS: str(plan.restarts)} if plan.restarts else {}
    return {**QUIET, **keep, **restarts, **plan.profile.environment}


def _torchrun(plan: LaunchPlan) -> Any:
    """NeMo-Run's torchrun launcher at a rendezvous of this run's own, the same at every launch."""
    import nemo_run

    number = zlib.crc32("/".join(plan.run.path.parts[-2:]).encode())  # sweeps name their runs alike
    return nemo_run.Torchrun(rdzv_id=number % 10_000, rdzv_port=20_000 + number % 10_000)


def _packager() -> Any:
    from launch.executors.code_packager import CodePackager  # a class of NeMo-Run's, which takes a second to import

    return CodePackager()


def _local(plan: LaunchPlan, profile: Profile, resources: Resources) -> Arguments:
    return {
        "ntasks_per_node": resources.processes,
        "launcher": _torchrun(plan) if resources.processes > 1 else None,
        "env_vars": {"PYTHONUNBUFFERED": "1", "LOGLEVEL": "ERROR", **_environment(plan)},
    }


def _docker(plan: LaunchPlan, profile: Profile, resources: Resources) -> Arguments:
    docker = profile.docker
    environment = {"PYTHONUNBUFFERED": "1", **_environment(plan)}
    more: dict[str, Any] = {}
    if docker.user:
        more["user"] = f"{os.getuid()}:{os.getgid()}" if docker.user == "caller" else docker.user
        # An id that the image does not know has neither a home nor a name; caches of torch and Triton want both.
        environment = {"HOME": "/tmp", "USER": "nemo", **environment}
    return {
        "container_image": profile.container.image or "",
        "ntasks_per_node": resources.processes,
        "launcher": _torchrun(plan) if resources.processes > 1 else None,
        "num_gpus": resources.gpus or None,
        "shm_size": docker.shm_size,
        "ulimits": [limit.replace("=", ":", 1) for limit in docker.ulimits],
        "ipc_mode": docker.ipc_mode,
        "network": docker.network,
        "runtime": docker.runtime,
        "volumes": list(plan.mounts()),
        "env_vars": {**environment, **{name: ByName(name) for name in profile.secrets}},
        "additional_kwargs": more,
        "packager": _packager(),
    }


def _slurm(plan: LaunchPlan, profile: Profile, resources: Resources) -> Arguments:
    slurm = profile.slurm if resources.trains else profile.slurm.without_gpus()
    environment = _environment(plan)
    arguments: Arguments = {
        "account": slurm.account,
        "partition": slurm.partition,
        "qos": slurm.qos,
        "time": slurm.time,
        "mem": slurm.mem,
        "cpus_per_task": slurm.cpus_per_task,
        "constraint": slurm.constraint,
        "exclude": slurm.exclude,
        "comment": slurm.comment,
        "exclusive": slurm.exclusive or None,
        "signal": slurm.signal,
        "retries": max(slurm.retries, profile.retries),
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "job_name_prefix": f"{plan.run.path.name}.",
        "additional_parameters": _additional(profile),
        "srun_args": list(slurm.srun) or None,
        # NeMo-Run writes `export NAME=value` as it is
        "env_vars": {name: shlex.quote(value) for name, value in environment.items()},
        "setup_lines": _setup(profile),
        "tunnel": tunnel_of(profile),
        "packager": _packager(),
        "poll_estimated_start_time": False,
    }
    if resources.trains:
        # always torchrun, also for one process: it, and not Slurm's variables, tells Lightning its rank
        arguments |= {"launcher": _torchrun(plan), "torchrun_nproc_per_node": resources.processes}
    if resources.gpus and slurm.request_gpus == "gres":
        arguments["gres"] = f"gpu:{resources.gpus}"
    elif resources.gpus and slurm.request_gpus == "gpus_per_node":
        arguments["gpus_per_node"] = resources.gpus
    if profile.container.image:
        arguments |= {
            "container_image": profile.container.image,
            "container_mounts": list(plan.mounts()),
            "container_env": [*environment, *profile.secrets],
        }
    return arguments


def _additional(profile: Profile) -> dict[str, str]:
    """Options of sbatch that NeMo-Run has no argument for."""
    further = {name.replace("-", "_"): value for name, value in profile.slurm.sbatch.items()}
    return further | {"kill_on_invalid_dep": "yes"}  # else what follows a failed stage waits for ever


def _setup(profile: Profile) -> str | None:
    """The profile's lines; else, without a container and on the login node, the environment that launches."""
    if profile.setup or profile.container.image or profile.slurm.ssh:
        return profile.strict_setup or None
    return f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'


def _skypilot(plan: LaunchPlan, profile: Profile, resources: Resources) -> Arguments:
    sky = profile.skypilot
    return {
        "container_image": profile.container.image,
        "infra": sky.infra,
        "gpus": sky.gpus if resources.gpus else None,
        "gpus_per_node": resources.gpus or None,
        "cpus": sky.cpus,
        "memory": sky.memory,
        "disk_size": sky.disk_size,
        "use_spot": sky.use_spot,
        "num_nodes": resources.nodes,
        "cluster_name": sky.cluster_name,
        "idle_minutes_to_autostop": sky.idle_minutes_to_autostop,
        "file_mounts": dict(sky.file_mounts) or None,
        "storage_mounts": dict(sky.storage_mounts) or None,
        "setup": profile.setup or None,
        "launcher": _torchrun(plan) if resources.trains else None,
        "torchrun_nproc_per_node": resources.processes if resources.trains else None,
        "env_vars": _environment(plan),
        # its packager must be the one that archives the last commit
    }


def _kubeflow(plan: LaunchPlan, profile: Profile, resources: Resources) -> Arguments:
    kube = profile.kubeflow
    arguments: Arguments = {
        "image": profile.container.image or "",
        "namespace": kube.namespace,
        "runtime_ref": kube.runtime_ref,
        "num_nodes": resources.nodes,
        "nprocs_per_node": resources.processes,
        "gpus_per_node": resources.gpus or None,
        "cpu_requests": kube.cpus,
        "memory_requests": kube.memory,
        "image_pull_secrets": list(kube.image_pull_secrets),
        "env_vars": _environment(plan),
        "env_list": [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": kube.secret, "key": name}}}
            for name in profile.secrets
        ],
        "launcher": _torchrun(plan) if resources.trains else None,
        "packager": _packager(),
    }
    if kube.claim:
        claim = {"name": "runs", "persistentVolumeClaim": {"claimName": kube.claim}}
        runs = str(plan.run.path.parent)
        arguments |= {
            "volumes": [claim],
            "volume_mounts": [{"name": "runs", "mountPath": runs}],
            "workdir_pvc": kube.claim,
            "workdir_pvc_path": runs,
        }
    return arguments


_ARGUMENTS: dict[str, tuple[str, Callable[[LaunchPlan, Profile, Resources], Arguments]]] = {
    "local": ("LocalExecutor", _local),
    "docker": ("DockerExecutor", _docker),
    "slurm": ("SlurmExecutor", _slurm),
    "skypilot": ("SkypilotExecutor", _skypilot),
    "kubeflow": ("KubeflowExecutor", _kubeflow),
}
