"""`nemo-run serve`: a run's export, any exported folder or an adapter, served by vLLM."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import CheckpointError, LaunchError

if TYPE_CHECKING:
    from launch.executors.profiles import Profile

CONTEXT = 4096
"""Tokens of a prompt and its answer: a ticket may be longer than those of the training."""


def serve_model(
    model: Annotated[Path, typer.Argument(metavar="RUN|EXPORT|ADAPTER", help="Run, exported folder, or PEFT adapter.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[cluster.KEY=VALUE]…", help="Keys of the profile to change.")
    ] = None,
    executor: Annotated[str | None, typer.Option(help="local, docker, slurm or skypilot; the profile's.")] = None,
    cluster: Annotated[Path | None, typer.Option(help="Cluster profile, as launch takes them.")] = None,
    name: Annotated[str, typer.Option(help="Name by which the model is asked for.")] = "tickets",
    host: Annotated[
        str | None, typer.Option(help="Address to listen at; by default 127.0.0.1 here, all elsewhere.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8000,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt and its answer; 4096, or the run's if they are more.")
    ] = None,
    vllm: Annotated[str, typer.Option(help="vLLM's command, where it is not on the PATH.")] = "vllm",
    image: Annotated[str | None, typer.Option(help="Image with vLLM; by default vLLM's own.")] = None,
    dryrun: Annotated[bool, typer.Option("--dryrun", help="Print what would run.")] = False,
) -> None:
    """Start vLLM with the arguments that fit the model and the GPUs, wait until it answers, and say where.

    Ctrl-C ends it. With a key in VLLM_API_KEY it answers only who brings that one, in OPENAI_API_KEY.

    Example: nemo-run serve runs/tickets
    """
    from launch.executors import servers
    from launch.executors.profiles import load_profile, split_overrides
    from launch.server_process import ensure_free, find, running
    from planning.serving_memory import TICKETS, plan_serving
    from serving import vllm_arguments

    others, of_profile = split_overrides(overrides or [])
    if others:
        raise LaunchError(f"serve takes no {others[0]!r}: only keys of the profile, as cluster.KEY=VALUE.")
    profile = load_profile(cluster, of_profile, executor)
    is_local = profile.executor == "local"
    folder, length = _folder(model)
    served = vllm_arguments.servable(folder)
    gpus, memory = _gpus(profile)
    tokens = min(context or length, served.config.max_positions)
    plan = plan_serving(served.config, served.weights, tokens, gpus, memory, served.precision)
    if is_local and not gpus:
        vllm_arguments.ensure_cpu_serves(served, _processor_flags())
    is_here = is_local or (profile.executor == "docker" and profile.docker.network == "host")
    host = host or ("127.0.0.1" if is_here else "0.0.0.0")
    if is_local and not dryrun:
        ensure_free(host, port)
        vllm = find(vllm)
    server = servers.Server(
        [vllm, *vllm_arguments.arguments(served, plan, name, host, port, on_cpu=not gpus)],
        host,
        port,
        profile.environment | vllm_arguments.environment(plan, on_cpu=not gpus),
        servers.secrets_of(profile),
        served.folders,
        plan.tensor if gpus else 0,
        name,
    )
    where = f"{plan.tensor} of {gpus} GPUs" if gpus else "the CPU"
    print(f"{served.model}: {plan.weights / 1e9:.3g} GB of weights on {where}; the cache of {TICKETS} tickets of "
          f"{plan.context:,} tokens takes {plan.cache / 1e9:.3g} GB")  # fmt: skip
    command = servers.command_for(profile, server, image)
    task = servers.skypilot_task(profile, server, image) if profile.executor == "skypilot" else ""
    if dryrun:
        variables = [f"{key}={shlex.quote(value)}" for key, value in server.environment.items()] if is_local else []
        print(f"{task}\n{' '.join(variables)} {shlex.join(command)}".strip())
        return
    if task:
        Path(command[-1]).write_text(task, encoding="utf-8")
    try:
        with running(command, server.environment if is_local else {}, servers.NODE) as process:
            url = process.wait_until_ready(lambda: servers.url_of(profile, server, process.node))
            print(f"serving {name} at {url}; Ctrl-C ends it", flush=True)
            process.wait()
    except FileNotFoundError:
        raise LaunchError(f"there is no {command[0]} here: install it, or choose another --executor.") from None
    except KeyboardInterrupt:
        print(f"ended {name}", flush=True)
    finally:
        if ending := servers.ending_of(profile, server):
            subprocess.run(ending, capture_output=True, check=False)


def _folder(model: Path) -> tuple[Path, int]:
    """The folder to serve, and the tokens of its longest prompts.

    Raises:
        CheckpointError: a run has exported nothing yet.
    """
    from pipeline.run_folder import RunFolder, is_run, run_above

    if not is_run(model):
        run = run_above(model)
        return model, max(CONTEXT, run.recipe.data.seq_length) if run else CONTEXT
    run = RunFolder.open(model)
    if not (run.exported / "config.json").is_file():
        raise CheckpointError(
            f"{model} has exported nothing yet: nemo-run convert export {model} FOLDER, and serve that folder."
        )
    return run.exported, max(CONTEXT, run.recipe.data.seq_length)


def _gpus(profile: Profile) -> tuple[int, int | None]:
    """GPUs of the node and bytes of each, of this machine or of the profile's."""
    from common.values import parse_size
    from modeling.attention import this_machine

    given = parse_size(profile.gpu_memory) if profile.gpu_memory else None
    if profile.executor != "local":
        return profile.gpus_per_node, given
    here = this_machine()
    return here.gpus, given or here.gpu_memory or None


def _processor_flags() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
