"""What stands between a recipe's training and the machine that it would run on: asked before anything is made."""

from __future__ import annotations

import os
from collections.abc import Iterator

from common.errors import ConfigurationError
from modeling.attention import Machine, attention_backend
from planning.flops import Work, training_flops
from planning.memory import base_bytes
from recipes.schema.recipe import Recipe, plan_of

CPU_RATE = 1e12
"""bf16 FLOP/s that a large server's CPUs reach in training, about: an H100 reaches 400 times as many."""
REHEARSAL = "recipes/gpt_oss_tiny_lora.py"


def obstacles_anywhere(recipe: Recipe) -> Iterator[str]:
    """What no machine trains."""
    if recipe.data.packed and recipe.layout.context > 1:
        yield (
            f"packed sequences cannot be split over {recipe.layout.context} ranks: set data.packed=false, or "
            "trainer.strategy.context_parallel_size=1."
        )
    if recipe.model.config.arguments.get("apply_rope_fusion"):
        yield "model.config.apply_rope_fusion=true drops YaRN's factor of 1.35, which gpt-oss has: leave it out."


def obstacles_here(recipe: Recipe, machine: Machine) -> Iterator[str]:
    """What this machine lacks; memory of its GPUs apart, which `launch.estimates` has."""
    if machine.capability is None:
        yield from _without_gpu(recipe)
        return
    if recipe.processes > machine.gpus:
        yield (
            f"the recipe trains on {recipe.processes} GPUs and this machine has {machine.gpus}: set "
            f"trainer.devices={machine.gpus}, or choose another --executor."
        )
    if recipe.data.packed and recipe.layout.context > 1:
        return  # told already
    try:
        attention_backend(
            machine, packed=recipe.data.packed, precision=recipe.model.precision, context=recipe.layout.context
        )
    except ConfigurationError as error:
        yield str(error)


def _without_gpu(recipe: Recipe) -> Iterator[str]:
    """A CPU trains what is small, or short."""
    plan = plan_of(recipe)
    if plan is None:
        return
    weights, memory = base_bytes(plan), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    tokens = plan.batch.seq_length * plan.batch.total * recipe.max_steps
    days = training_flops(plan.config, Work(tokens, 0, 0), plan.lora).total / CPU_RATE / 86_400
    elsewhere = f"choose another --executor, make data and base here with --until import, or rehearse with {REHEARSAL}."
    if weights > memory:
        yield (
            f"this machine has no GPU, and the model's {weights / 1e9:.0f} GB do not fit its {memory / 1e9:.0f} GB: "
            + elsewhere
        )
    elif days > 1:
        yield f"this machine has no GPU, and a CPU would train for {days:,.0f} days or so: {elsewhere}"
