"""LoRA on gpt-oss-20b, attention and experts: one GPU with 80 GB, or eight that share the batch."""

from __future__ import annotations

import nemo_run as run

from recipes.finetuning import expert_lora, finetuning_recipe, hub_model, tickets
from recipes.schema.recipe import Recipe

PRESETS = {"8xh100": ("trainer.devices=8", "data.global_batch_size=64", "trainer.max_steps=110")}


def recipe() -> run.Config[Recipe]:
    """Two passes over the Kaggle tickets, 32,768 tokens a step."""
    return finetuning_recipe(
        "gpt_oss_20b_lora",
        model=hub_model("openai/gpt-oss-20b"),
        data=tickets(global_batch_size=16),
        peft=expert_lora(),
        max_steps=440,
        lr=2e-4,
        devices=1,
    )
