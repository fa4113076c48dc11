"""`nemo-run plan`: which parallel layouts fit the GPUs, ranked, before anything is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ConfigurationError, LaunchError
from common.values import parse_size
from modeling.hf_config import find_config

if TYPE_CHECKING:
    from rich.table import Table

    from planning.memory import TrainingPlan
    from planning.ranking import Candidate, Cluster

UNITS = {"GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20}


def plan_layouts(
    model: Annotated[
        str, typer.Argument(metavar="RECIPE|MODEL", help="Recipe file, gpt-oss-20b, gpt-oss-120b, or a config.json.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Fields of the recipe to change.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes; the recipe's, or 1.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="GPUs of each node; the recipe's, or 8.")] = None,
    gpu_memory: Annotated[str, typer.Option(help="Memory of each GPU: 80GB (10⁹ bytes) or 80GiB.")] = "80GB",
    seq_length: Annotated[int | None, typer.Option(min=1, help="Tokens of a sequence; 2048.")] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Sequences a GPU takes at once; 1.")] = None,
    global_batch: Annotated[int | None, typer.Option(min=1, help="Sequences of a step; 16.")] = None,
    lora_rank: Annotated[
        int | None, typer.Option(min=0, help="Rank of the adapters; 0 trains all parameters; 16.")
    ] = None,
    expert_lora: Annotated[bool | None, typer.Option(help="Adapters on every expert too; they are.")] = None,
    recompute: Annotated[bool | None, typer.Option(help="Compute each layer again in the backward pass.")] = None,
    packed: Annotated[
        bool | None, typer.Option(help="Several tickets a sequence, which no context parallelism splits; they are.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Layouts to show.")] = 10,
) -> None:
    """Memory per GPU at every legal parallel layout, the best one as overrides, or what to change when none fits.

    Example: nemo-run plan recipes/gpt_oss_120b_lora.py --gpus-per-node 8 --gpu-memory 80GB
    """
    from modeling.layouts import Batch
    from modeling.lora_targets import ATTENTION, EXPERTS, LoraTargets
    from planning.memory import TrainingPlan
    from planning.ranking import Cluster

    if model.endswith(".py"):
        training, wide, deep = _of_recipe(Path(model), overrides or [])
    else:
        config, adapters = find_config(model), LoraTargets(16, ATTENTION + EXPERTS)
        training = TrainingPlan(config, Batch(2048, packed=True), adapters, packed_experts=config.has_mxfp4)
        wide, deep = 1, 8
    batch, lora = training.batch, training.lora
    sizes = {"seq_length": seq_length, "micro": micro_batch, "total": global_batch}
    batch = replace(batch, **{name: size for name, size in sizes.items() if size})
    batch = batch if packed is None else replace(batch, packed=packed)
    if lora_rank is not None:
        lora = replace(lora or LoraTargets(lora_rank, ATTENTION + EXPERTS), rank=lora_rank) if lora_rank else None
    if lora and expert_lora is not None:
        lora = replace(lora, modules=ATTENTION + EXPERTS if expert_lora else ATTENTION)
    again = training.recompute if recompute is None else "full" if recompute else "none"
    packed_experts = training.packed_experts and lora is not None
    training = replace(training, batch=batch, lora=lora, recompute=again, packed_experts=packed_experts)
    show(training, Cluster(nodes or wide, gpus_per_node or deep, parse_size(gpu_memory)), rows)


def _of_recipe(file: Path, overrides: list[str]) -> tuple[TrainingPlan, int, int]:
    """A recipe's training, its nodes and its GPUs a node."""
    from pipeline.loading import load
    from recipes.schema.recipe import plan_of

    recipe = load(file, overrides)
    training = plan_of(recipe)
    if training is None:
        raise ConfigurationError(
            f"{recipe.model.hf} is neither a known model nor a folder here: name its folder with model.hf=."
        )
    return training, recipe.nodes, recipe.processes


def show(training: TrainingPlan, cluster: Cluster, rows: int = 10) -> None:
    """Print the ranked layouts, and the overrides of the first.

    Raises:
        ConfigurationError: no layout is legal.
        LaunchError: no layout fits; the message says what would.
    """
    from rich.console import Console

    from planning.ranking import BETWEEN, COMPUTE, INSIDE, rank_layouts

    ranked = rank_layouts(training, cluster)
    if not ranked:
        raise ConfigurationError(_why_none_is_legal(training, cluster))
    fitting = sum(candidate.fits for candidate in ranked)
    console = Console(width=None if Console().is_terminal else 150)
    console.print(_table(ranked[:rows]))
    print(f"{fitting} of {len(ranked)} legal layouts fit {cluster.world} × {cluster.gpu_memory / 1e9:g} GB.")
    rates = f"{COMPUTE / 1e12:.0f} TFLOP/s, {INSIDE / 1e9:.0f} GB/s inside a node, {BETWEEN / 1e9:.0f} between"
    print(f"Ranked by rates that no GPU has confirmed: {rates}.")
    if not fitting:
        raise LaunchError(refusal(training, cluster, ranked[0]))
    print("Best:", " ".join(ranked[0].layout.overrides()))


def refusal(training: TrainingPlan, cluster: Cluster, nearest: Candidate) -> str:
    """The sentence that says that a training cannot fit, by how much, and what to change."""
    from planning.ranking import advice

    have, need = cluster.gpu_memory / 1e9, nearest.memory.total / 1e9
    changes = advice(training, cluster)
    remedy = "; or ".join(changes) if changes else "use more or larger GPUs"
    return f"no layout fits {have:g} GB a GPU, {nearest.layout} needs {need:.1f} GB: {remedy}."


def _why_none_is_legal(training: TrainingPlan, cluster: Cluster) -> str:
    from modeling.layouts import Layout, violations

    rank = training.lora.rank if training.lora else None
    reasons = violations(training.config, Layout(), cluster.world, training.batch, rank)
    return f"no layout is legal on {cluster.world} GPUs ({'; '.join(reasons)}): change the global batch or the GPUs."


def _table(ranked: list[Candidate]) -> Table:
    from rich.table import Table

    parts = list(ranked[0].memory.parts())
    table = Table("layout", *parts, "GB a GPU", "why", box=None, pad_edge=False)
    for column in table.columns[1:-1]:
        column.justify = "right"
    for candidate in ranked:
        sizes = [f"{size / 1e9:.1f}" for size in candidate.memory.parts().values()]
        total = f"{candidate.memory.total / 1e9:.1f}"
        style = "" if candidate.fits else "dim"
        table.add_row(str(candidate.layout), *sizes, total, candidate.reason(ranked[0]), style=style)
    return table
