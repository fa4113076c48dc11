"""All parameters of gpt-oss-20b: eight GPUs with 80 GB that share the experts."""

from __future__ import annotations

import nemo_run as run

from recipes.finetuning import finetuning_recipe, hub_model, tickets
from recipes.schema.recipe import Recipe


def recipe() -> run.Config[Recipe]:
    """Two passes over the Kaggle tickets, 131,072 tokens a step."""
    return finetuning_recipe(
        "gpt_oss_20b_sft",
        model=hub_model("openai/gpt-oss-20b", recompute=True),
        data=tickets(global_batch_size=64),
        max_steps=110,
        lr=1e-5,
        devices=8,
        expert=8,
    )
