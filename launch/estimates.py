"""Whether a recipe's training fits the GPUs, and how much disk its stages write: estimates before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from common.values import parse_size
from modeling.layouts import Layout, violations
from pipeline.stage import Stage
from planning.memory import BYTES, TrainingPlan, base_bytes, memory_of, parameters
from planning.ranking import Cluster, advice, rank_layouts
from recipes.schema.recipe import Recipe, plan_of

OPTIMIZER_BYTES = 12  # fp32 master weight and Adam's two moments, a parameter trained
ROOM = 10**9  # tokenizers, tickets, logs, reports


def refusal_of(recipe: Recipe, gpu_memory: str | int) -> Iterator[str]:
    """Why the training cannot run at the recipe's layout, if it cannot, and what would; memory as 80GB or in bytes."""
    plan, layout = plan_of(recipe), recipe.layout
    size = gpu_memory if isinstance(gpu_memory, int) else parse_size(gpu_memory)
    if plan is None:
        return
    cluster = Cluster(recipe.nodes, recipe.processes, size)
    rank = plan.lora.rank if plan.lora else None
    if broken := violations(plan.config, layout, cluster.world, plan.batch, rank):
        yield (f"{layout} cannot be trained on {cluster.world} GPUs ({'; '.join(broken)}): {_remedy(plan, cluster)}.")
        return
    need = memory_of(plan, layout, cluster.world, size).total
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


def disk_of(recipe: Recipe, todo: Sequence[Stage]) -> int:
    """Bytes that these stages will write, about: base, checkpoints (best, the last two, one being saved), export."""
    plan = plan_of(recipe)
    if recipe.model.toy or plan is None:
        return ROOM
    weights = parameters(replace(plan, lora=None, packed_experts=False), Layout()).held
    names = {stage.name for stage in todo}
    held = BYTES[recipe.model.precision]
    total = ROOM
    if "import" in names:
        total += base_bytes(plan)
    if "finetune" in names:
        total += ROOM if recipe.peft else 4 * weights * (held + OPTIMIZER_BYTES)
    if "export" in names:
        packed, precision = recipe.export.weights == "mxfp4", "fp32" if recipe.export.weights == "fp32" else "bf16"
        total += base_bytes(replace(plan, packed_experts=packed, precision=precision))
    return total
