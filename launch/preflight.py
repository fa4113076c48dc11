"""Checks before a launch: everything that would make a stage fail, reported at once."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import LaunchError
from common.values import listed, one_line
from data_prep.sources import SUFFIXES
from launch.executors.tunnel import ask, is_remote
from launch.launch_plan import LaunchPlan
from launch.run_status import active_jobs
from modeling import attention
from pipeline.pending import not_made
from recipes.schema.logger_checks import obstacles

GPU_EXECUTORS = ("docker", "slurm", "skypilot", "kubeflow")
ASKED = re.compile(
    r"^#SBATCH (--(?:account|partition|qos|time|nodes|mem|gres|gpus-per-node|cpus-per-task|constraint|reservation)=.+)",
    re.M,
)
NOT_NOW = ("down, drained or reserved", "are busy")  # sbatch takes the job all the same, and it waits
SHARED_EXECUTORS = ("local", "docker", "slurm")  # these see this file system, or that of the login node


def check(plan: LaunchPlan, *, force: bool = False) -> None:
    """Refuse a launch that cannot succeed; with `force`, the estimate of memory refuses nothing.

    Raises:
        LaunchError: lists every reason.
    """
    reasons = obstacles_of(plan, force=force)
    if not reasons and plan.profile.executor == "slurm":
        reasons = list(refused_by_slurm(plan))
    if reasons:
        raise LaunchError(listed(reasons))


def obstacles_of(plan: LaunchPlan, *, force: bool = False, alone: bool = True) -> list[str]:
    """Every reason why a launch cannot succeed, but for what sbatch itself would refuse.

    Args:
        alone: False for a run of a sweep, which has one answer for all its runs about their disk and their jobs.
    """
    skipped = {*([_fits] if force else []), *([] if alone else [_disk, _busy])}
    return [sentence for each in CHECKS if each not in skipped for sentence in each(plan)]


def _gpus(plan: LaunchPlan) -> Iterator[str]:
    if plan.recipe.model.toy or not plan.trains or plan.profile.executor not in GPU_EXECUTORS:
        return
    asked, present = plan.recipe.processes, plan.profile.gpus_per_node
    if asked > present:
        yield (
            f"the recipe trains on {asked} GPUs a node and the profile has {present}: "
            f"set cluster.gpus_per_node, or trainer.devices={max(1, present)}."
        )


def _machine(plan: LaunchPlan) -> Iterator[str]:
    if not plan.trains:
        return
    from launch import machine

    yield from machine.obstacles_anywhere(plan.recipe)
    if plan.profile.executor == "local" and not plan.recipe.model.toy:
        yield from machine.obstacles_here(plan.recipe, attention.this_machine())


def _fits(plan: LaunchPlan) -> Iterator[str]:
    if plan.recipe.model.toy or not plan.trains:
        return
    given, is_local = plan.profile.gpu_memory, plan.profile.executor == "local"
    here = attention.this_machine() if is_local and not given else attention.Machine()
    if size := given or here.gpu_memory:
        from launch.estimates import refusal_of

        yield from refusal_of(plan.recipe, size)


def _image(plan: LaunchPlan) -> Iterator[str]:
    image = plan.profile.container.image
    if not image:
        executor = plan.profile.executor
        if executor in ("docker", "kubeflow"):
            yield f"{executor} needs an image: set cluster.container.image=NAME; containers/ has two to build."
        return
    if plan.profile.executor == "slurm" and (image.startswith(("/", ".")) or image.endswith(".sqsh")):
        if not ask(plan.tunnel, "test", "-r", image).ok:
            yield f"there is no image {image}: containers/README.md says how to import one with enroot."
    elif plan.profile.executor == "docker":
        yield from _docker_image(image)


def _docker_image(image: str) -> Iterator[str]:
    import docker  # pyright: ignore[reportMissingImports]
    from docker.errors import APIError, DockerException, ImageNotFound  # pyright: ignore[reportMissingImports]

    try:
        client = docker.from_env()
        client.images.get(image)
    except ImageNotFound:
        print(f"pulling {image}", flush=True)
        try:
            client.images.pull(image)  # pyright: ignore[reportPossiblyUnboundVariable]
        except (APIError, DockerException) as error:
            reason = one_line(error)
            yield f"image {image} is not here and cannot be pulled ({reason}): build it (containers/), or name another."
    except DockerException as error:
        yield f"docker does not answer ({one_line(error)}): start it, or set DOCKER_HOST."


def _paths(plan: LaunchPlan) -> Iterator[str]:
    if plan.profile.executor not in SHARED_EXECUTORS:
        return
    for path in plan.local_inputs():
        if not ask(plan.tunnel, "test", "-e", str(path)).ok:
            yield f"{path}, which the recipe names, does not exist{_there(plan.tunnel)}: name another."
    if plan.recipe.data.source.endswith(SUFFIXES) and not plan.recipe.data.source.startswith("/"):
        yield f"{plan.recipe.data.source}, which the recipe names, does not exist in {os.getcwd()}: name another."
    for mount in plan.profile.container.mounts:
        host = mount.split(":")[0]
        if not ask(plan.tunnel, "test", "-e", host).ok:
            where = _there(plan.tunnel)
            yield f"{host} is to be mounted and does not exist{where}: make it, or change container.mounts."
    if plan.profile.executor == "slurm" and is_remote(plan.tunnel) and not plan.profile.runs:
        yield "runs on a cluster behind SSH need a folder there: set cluster.runs=/shared/folder."


def _there(tunnel: Any) -> str:
    return f" on {tunnel.host}" if is_remote(tunnel) else ""


def _made(plan: LaunchPlan) -> Iterator[str]:
    if is_remote(plan.tunnel) or plan.profile.executor not in SHARED_EXECUTORS:
        return  # their run folder is out of sight here; the stage itself looks again
    for stage, before in not_made(plan.run, plan.todo):
        yield f"stage {stage.name} reads what {before} makes, and that is not there: start with --from {before}."


def _secrets(plan: LaunchPlan) -> Iterator[str]:
    def known(name: str) -> bool:
        return ask(plan.tunnel, "printenv", name).ok if is_remote(plan.tunnel) else bool(os.environ.get(name))

    if plan.profile.secrets and plan.profile.executor == "skypilot":
        yield "SkyPilot would write secrets down: set cluster.secrets=[] and mount a token file (skypilot.file_mounts)."
    elif plan.profile.secrets and plan.profile.executor == "kubeflow" and not plan.profile.kubeflow.secret:
        yield "secrets come from a Kubernetes secret: set cluster.kubeflow.secret=NAME."
    elif plan.profile.executor != "kubeflow":
        for name in plan.profile.secrets:
            if not known(name):
                yield f"{name} is not set{_there(plan.tunnel)}: export it, or take it out of the profile's secrets."
    if plan.recipe.data.source != "kaggle" or all(stage.name != "prepare" for stage in plan.todo):
        return
    from_file = plan.profile.executor in ("local", "slurm") and not plan.profile.container.image
    if from_file and ask(plan.tunnel, "sh", "-c", "test -e ~/.kaggle/kaggle.json || test -e ~/.kaggle/access_token").ok:
        return
    passed = set(plan.profile.secrets) if plan.profile.container.image else set(os.environ)
    if not ({"KAGGLE_API_TOKEN"} <= passed or {"KAGGLE_USERNAME", "KAGGLE_KEY"} <= passed):
        where = "name it in the profile's secrets" if plan.profile.container.image else "export it"
        yield f"data.source=kaggle needs KAGGLE_API_TOKEN in stage prepare: {where}."


def _logger(plan: LaunchPlan) -> Iterator[str]:
    if not plan.trains:
        return
    container = plan.profile.container.image or plan.profile.executor in ("skypilot", "kubeflow")
    passed = {*plan.profile.secrets, *plan.profile.environment} if container else set(os.environ)
    yield from obstacles(plan.recipe.logger, passed, packages=plan.profile.executor == "local" and not container)


def _disk(plan: LaunchPlan) -> Iterator[str]:
    if plan.profile.executor in SHARED_EXECUTORS:
        yield from too_large([plan], plan.run.path)


def too_large(plans: Sequence[LaunchPlan], folder: Path) -> Iterator[str]:
    """That what these launches write below a folder has no room there, if so."""
    from launch.estimates import disk_of

    need = sum(disk_of(plan.recipe, plan.todo) for plan in plans)
    free = _free(folder, plans[0].tunnel)
    if free is not None and need > free:
        yield (
            f"{folder} needs about {need / 1e9:.0f} GB and {free / 1e9:.0f} GB are free: "
            "choose another disk with --runs, or remove old runs."
        )


def _free(path: Path, tunnel: Any) -> int | None:
    """Bytes free where `path` is or will be."""
    if is_remote(tunnel):
        answer = ask(
            tunnel, "sh", "-c", 'd="$1"; while [ ! -d "$d" ]; do d=$(dirname "$d"); done; df -Pk "$d"', "sh", str(path)
        )
        return int(answer.out.splitlines()[-1].split()[3]) * 1024 if answer.ok else None
    while not path.is_dir():
        path = path.parent
    return shutil.disk_usage(path).free


def _busy(plan: LaunchPlan) -> Iterator[str]:
    if plan.profile.executor == "slurm":
        for stage, (job, state) in active_jobs(plan.run.path, plan.tunnel).items():
            remedy = f"wait for it, or nemo-run cancel {plan.run.path}"
            yield f"stage {stage} of this run is {state.name} as job {job}: {remedy}."


def _sbatch(plan: LaunchPlan) -> Iterator[str]:
    if plan.profile.executor == "slurm" and not ask(plan.tunnel, "sh", "-c", "command -v sbatch").ok:
        yield (
            f"sbatch is not to be found{_there(plan.tunnel)}: launch from a login node, "
            "or name one with cluster.slurm.ssh.host, .user and .jobs."
        )


def refused_by_slurm(plan: LaunchPlan) -> Iterator[str]:
    """Refusals of `sbatch --test-only`, one sentence each, before any script is submitted."""
    from launch.dryrun import texts_of

    refused: dict[str, dict[str, list[str]]] = {}
    for name, text in texts_of(plan):
        answer = ask(plan.tunnel, "sbatch", "--test-only", stdin=text[text.index("#!") :])
        if not answer.ok:
            lines = answer.err.strip().splitlines() or ["no reason given"]
            reason = lines[-1].removeprefix("allocation failure: ").removeprefix("sbatch: error: ")
            if "contact slurm controller" in reason:
                yield f"Slurm's controller does not answer{_there(plan.tunnel)} ({reason}): try again when it does."
                return
            if not any(words in reason.lower() for words in NOT_NOW):
                refused.setdefault(reason, {})[name] = ASKED.findall(text)
    for reason, stages in refused.items():
        what = ("stages " if len(stages) > 1 else "stage ") + ", ".join(stages)
        asked = " ".join(dict.fromkeys(option for options in stages.values() for option in options))
        yield f"Slurm refuses {what} ({asked}): {reason}; change the profile, or add cluster.slurm.KEY=VALUE."


CHECKS: tuple[Callable[[LaunchPlan], Iterator[str]], ...] = (
    _sbatch,
    _gpus,
    _machine,
    _fits,
    _image,
    _paths,
    _made,
    _secrets,
    _logger,
    _disk,
    _busy,
)
