"""LoRA on gpt-oss-120b, attention and experts: eight GPUs with 80 GB that share the experts, or two such nodes."""

from __future__ import annotations

import nemo_run as run

from recipes.finetuning import expert_lora, finetuning_recipe, hub_model, tickets
from recipes.schema.recipe import Recipe

PRESETS = {"2x8xh100": ("trainer.num_nodes=2",)}


def recipe() -> run.Config[Recipe]:
    """Two passes over the Kaggle tickets, 131,072 tokens a step."""
    return finetuning_recipe(
        "gpt_oss_120b_lora",
        model=hub_model("openai/gpt-oss-120b"),
        data=tickets(global_batch_size=64),
        peft=expert_lora(),
        max_steps=110,
        lr=2e-4,
        devices=8,
        expert=8,
    )
