"""gpt-oss-20b by LoRA on eight GPUs: what the launcher's own tests submit."""

from __future__ import annotations

import nemo_run as run

from recipes.finetuning import finetuning_recipe
from recipes.schema.recipe import Model, Recipe, TicketData
from recipes.schema.trees import lazy


def recipe() -> run.Config[Recipe]:
    """Two nodes of eight GPUs, expert parallel inside a node."""
    return finetuning_recipe(
        "lora_20b",
        model=run.Config(Model, hf="openai/gpt-oss-20b", nemo="base"),
        data=run.Config(TicketData, source="sample"),
        peft=lazy(
            "modeling.expert_lora.GptOssLoRA",
            target_modules=["linear_qkv", "linear_proj", "experts.linear_fc1", "experts.linear_fc2"],
            dim=16,
            alpha=32,
        ),
        max_steps=100,
        lr=1e-4,
        devices=8,
        num_nodes=2,
        expert=8,
    )
