"""Whether a recipe's training fits the GPUs, and how much disk its stages write: estimates before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from errors import ConfigurationError
from modeling.layouts import Batch, Layout, violations
from modeling.memory import BYTES, TrainingPlan, memory, parameters
from modeling.planning import Cluster, advice, rank_layouts
from recipes.config import Recipe, lora_targets
from recipes.pipeline import Stage

OPTIMIZER_BYTES = 12  # fp32 master weight and Adam's two moments, a parameter trained
ROOM = 10**9  # tokenizers, tickets, logs, reports


def plan_of(recipe: Recipe) -> TrainingPlan | None:
    """The recipe's training as the memory model sees it; None where its config.json is not at hand."""
    from launch.plan import find_config

    try:
        config = find_config(str(recipe.model.hf))
    except ConfigurationError:
        return None
    data = recipe.data
    batch = Batch(data.seq_length, data.micro_batch_size, data.global_batch_size, data.packed)
    recompute = "full" if recipe.model.config.arguments.get("recompute_granularity") == "full" else "none"
    return TrainingPlan(config, batch, lora_targets(recipe), recompute)


def refusal_of(recipe: Recipe, gpu_memory: str | int) -> Iterator[str]:
    """Why the training cannot run at the recipe's layout, if it cannot, and what would; memory as 80GB or in bytes."""
    from launch.plan import parse_size

    plan, layout = plan_of(recipe), recipe.layout
    size = gpu_memory if isinstance(gpu_memory, int) else parse_size(gpu_memory)
    if plan is None:
        return
    cluster = Cluster(recipe.nodes, recipe.processes, size)
    rank = plan.lora.rank if plan.lora else None
    if broken := violations(plan.config, layout, cluster.world, plan.batch, rank):
        yield (f"{layout} cannot be trained on {cluster.world} GPUs ({'; '.join(broken)}): {_remedy(plan, cluster)}.")
        return
    need = memory(plan, layout, cluster.world, size).total
    if need > size:
        yield (
            f"{layout} needs {need / 1e9:.0f} GB of each GPU, which has {size / 1e9:.0f} GB: {_remedy(plan, cluster)}; "
            "or insist with --force."
        )


def _remedy(plan: TrainingPlan, cluster: Cluster) -> str:
    """The fastest layout that fits as overrides, or the changes without which none does."""
    best = next((candidate for candidate in rank_layouts(plan, cluster) if candidate.fits), None)
    if best:
        return "set " + " ".join(best.layout.overrides())
    return "; or ".join(advice(plan, cluster)) or "use more or larger GPUs"


def disk_of(recipe: Recipe, todo: list[Stage]) -> int:
    """Bytes that these stages will write, about: base, checkpoints (best, last and the one being saved), export."""
    plan = plan_of(recipe)
    if recipe.model.toy or plan is None:
        return ROOM
    weights = parameters(replace(plan, lora=None), Layout()).held
    names = {stage.name for stage in todo}
    held = BYTES[recipe.model.precision]
    total = ROOM
    if "import" in names:
        total += weights * held
    if "finetune" in names:
        total += ROOM if recipe.peft else 3 * weights * (held + OPTIMIZER_BYTES)
    if "export" in names:
        total += weights * BYTES.get(recipe.export.weights, 2)
    return total
