"""Everything that can be known to go wrong before a stage starts, told at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from errors import LaunchError
from launch import store
from launch.executors import local_inputs
from launch.login import ask, is_remote
from launch.profiles import Profile
from launch.selection import not_made
from modeling import attention
from recipes.pipeline import RunFolder, Stage
from recipes.services import obstacles

GPU_EXECUTORS = ("docker", "slurm", "skypilot", "kubeflow")
NOT_NOW = ("down, drained or reserved", "are busy")  # sbatch takes the job all the same, and it waits
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
SHARED_EXECUTORS = ("local", "docker", "slurm")  # these see this file system, or that of the login node


def check(run: RunFolder, profile: Profile, todo: list[Stage], tunnel: Any, *, force: bool = False) -> None:
    """Refuse a launch that cannot succeed; with `force`, the estimate of memory refuses nothing.

    Raises:
        LaunchError: lists every reason.
    """
    checks = [each for each in CHECKS if not (force and each is _fits)]
    told = [sentence for each in checks for sentence in each(run, profile, todo, tunnel)]
    if not told and profile.executor == "slurm":
        told = list(_refused_by_slurm(run, profile, todo, tunnel))
    if len(told) == 1:
        raise LaunchError(told[0])
    if told:
        raise LaunchError(f"{len(told)} things stand in the way:\n" + "\n".join(f"  - {line}" for line in told))


def _gpus(run: RunFolder, profile: Profile, todo: list[Stage], tunnel: Any) -> Iterator[str]:
    if run.recipe.model.toy or not any(stage.trains for stage in todo) or profile.executor not in GPU_EXECUTORS:
        return
    wanted, have = run.recipe.processes, profile.gpus_per_node
    if wanted > have:
        yield (
            f"the recipe trains on {wanted} GPUs a node and the profile has {have}: "
            f"set cluster.gpus_per_node, or trainer.devices={max(1, have)}."
        )


def _machine(run: RunFolder, profile: Profile, todo: list[Stage], tunnel: Any) -> Iterator[str]:
    if not any(stage.trains for stage in todo):
        return
    from launch import machine

    yield from machine.obstacles_anywhere(run.recipe)
    if profile.executor == "local" and not run.recipe.model.toy:
        yield from machine.obstacles_here(run.recipe, attention.this_machine())


def _fits(run: RunFolder, profile: Profile, todo: list[Stage], tunnel: Any) -> Iterator[str]:
    if run.recipe.model.toy or not any(stage.trains for stage in todo):
        return
    here = attention.this_machine() if profile.executor == "local" and not profile.gpu_memory else attention.Machine()
    if size := profile.gpu_memory or here.gpu_memory:
        from launch.fit import refusal_of

        yield from refusal_of(run.recipe, size)


def _image(run: RunFolder, profile: Profile, todo: list[Stage], tunnel: Any) -> Iterator[str]:
    image = profile.container.image
    if not image:
        if profile.executor in ("docker", "kubeflow"):
            yield f"{profile.executor} needs an image: set cluster.container.image=NAME; containers/ has two to build."
        return
    if profile.executor == "slurm" and (image.startswith(("/", ".")) or image.endswith(".sqsh")):
        if not ask(tunnel, "test", "-r", image).ok:
            yield f"there is no image {image}: containers/README.md says how to import one with enroot."
    elif profile.executor == "docker":
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
            said = " ".join(str(error).split())[-200:]
            yield f"image {image} is not here and cannot be pulled ({said}): build it (containers/), or name another."
    except DockerException as error:
        said = " ".join(str(error).split())[:200]
        yield f"docker does not answer ({said}): start it, or set DOCKER_HOST."


def _paths(run: RunFolder, profile: Profile, todo: list[Stage], tunnel: Any) -> Iterator[str]:
    if profile.executor not in SHARED_EXECUTORS:
        return
    for path in local_inputs(run):
        if not ask(tunnel, "test", "-e", str(path)).ok:
            yield f"{path}, which the recipe names, does not exist{_there(tunnel)}."
    if run.recipe.data.source.endswith(TABLES) and not run.recipe.data.source.startswith("/"):
        yield f"{run.recipe.data.source}, which the recipe names, does not exist in {os.getcwd()}."
    for mount in profile.container.mounts:
        host = mount.split(":")[0]
        if not ask(tunnel, "test", "-e", host).ok:
            yield f"{host} is to be mounted and does not exist{_there(tunnel)}: make it, or change container.mounts."
    if profile.executor == "slurm" and is_remote(tunnel) and not profile.runs:
        yield "runs on a cluster behind SSH need a folder there: set cluster.runs=/shared/folder."


def _there(tunnel: Any) -> str:
    return f" on {tunnel.host}" if is_remote(tunnel) else ""


def _made(run: RunFolder, profile: Profile, todo: list[Stage], tunnel: Any) -> Iterator[str]:
    if is_remote(tunnel) or profile.executor not in SHARED_EXECUTORS:
        return  # their run folder is out of sight here; the stage itself looks again
    for stage, before in not_made(run, todo):
        yield f"stage {stage.name} reads what {before} makes, and that is not there: start with --from {before}."


def _secrets(run: RunFolder, profile: Profile, todo: list[Stage], tunnel: Any) -> Iterator[str]:
    def known(name: str) -> bool:
        return ask(tunnel, "printenv", name).ok if is_remote(tunnel) else bool(os.environ.get(name))

    if profile.secrets and profile.executor == "skypilot":
        yield "SkyPilot would write secrets down: set cluster.secrets=[] and mount a token file (skypilot.file_mounts)."
    elif profile.secrets and profile.executor == "kubeflow" and not profile.kubeflow.secret:
        yield "secrets come from a Kubernetes secret: set cluster.kubeflow.secret=NAME."
    elif profile.executor != "kubeflow":
        for name in profile.secrets:
            if not known(name):
                yield f"{name} is not set{_there(tunnel)}: export it, or take it out of the profile's secrets."
    if run.recipe.data.source != "kaggle" or all(stage.name != "prepare" for stage in todo):
        return
    from_file = profile.executor in ("local", "slurm") and not profile.container.image
    if from_file and ask(tunnel, "sh", "-c", "test -e ~/.kaggle/kaggle.json || test -e ~/.kaggle/access_token").ok:
        return
    passed = set(profile.secrets) if profile.container.image else set(os.environ)
    if not ({"KAGGLE_API_TOKEN"} <= passed or {"KAGGLE_USERNAME", "KAGGLE_KEY"} <= passed):
        where = "name it in the profile's secrets" if profile.container.image else "export it"
        yield f"data.source=kaggle needs KAGGLE_API_TOKEN in stage prepare: {where}."


def _logger(run: RunFolder, profile: Profile, todo: list[Stage], tunnel: Any) -> Iterator[str]:
    if not any(stage.trains for stage in todo):
        return
    container = profile.container.image or profile.executor in ("skypilot", "kubeflow")
    passed = {*profile.secrets, *profile.environment} if container else set(os.environ)
    yield from obstacles(run.recipe.logger, passed, packages=profile.executor == "local" and not container)


def _disk(run: RunFolder, profile: Profile, todo: list[Stage], tunnel: Any) -> Iterator[str]:
    if profile.executor not in SHARED_EXECUTORS:
        return
    from launch.fit import disk_of

    need = disk_of(run.recipe, todo)
    free = _free(run.path, tunnel)
    if free is not None and need > free:
        yield (
            f"{run.path} needs about {need / 1e9:.0f} GB and {free / 1e9:.0f} GB are free: "
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


def _busy(run: RunFolder, profile: Profile, todo: list[Stage], tunnel: Any) -> Iterator[str]:
    if profile.executor != "slurm":
        return
    from launch.slurm import job_states

    launch = store.last_launch(run.path)
    ids = {job.id: job.stage for job in launch.jobs.values() if job.id} if launch else {}
    for job, state in job_states(tunnel, list(ids)).items():
        if state.active:
            remedy = f"wait for it, or nemo-run cancel {run.path}"
            yield f"stage {ids[job]} of this run is {state.name} as job {job}: {remedy}."


def _sbatch(run: RunFolder, profile: Profile, todo: list[Stage], tunnel: Any) -> Iterator[str]:
    if profile.executor == "slurm" and not ask(tunnel, "sh", "-c", "command -v sbatch").ok:
        yield (
            f"sbatch is not to be found{_there(tunnel)}: launch from a login node, "
            "or name one with cluster.slurm.ssh.host, .user and .jobs."
        )


def _refused_by_slurm(run: RunFolder, profile: Profile, todo: list[Stage], tunnel: Any) -> Iterator[str]:
    """What `sbatch --test-only` says against a script, before any is submitted."""
    from launch.dryrun import texts_of

    refused: dict[str, list[str]] = {}
    for name, text in texts_of(run, profile, todo):
        answer = ask(tunnel, "sbatch", "--test-only", stdin=text[text.index("#!") :])
        if not answer.ok:
            said = answer.err.strip().splitlines() or ["no reason given"]
            reason = said[-1].removeprefix("allocation failure: ").removeprefix("sbatch: error: ")
            if "contact slurm controller" in reason:
                yield f"Slurm's controller does not answer{_there(tunnel)} ({reason}): try again when it does."
                return
            if not any(words in reason.lower() for words in NOT_NOW):
                refused.setdefault(reason, []).append(name)
    for reason, names in refused.items():
        what = ("stages " if len(names) > 1 else "stage ") + ", ".join(names)
        yield f"Slurm refuses {what}: {reason}; change the profile, or add cluster.slurm.KEY=VALUE."


CHECKS: tuple[Callable[[RunFolder, Profile, list[Stage], Any], Iterator[str]], ...] = (
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
