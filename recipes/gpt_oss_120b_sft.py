"""All parameters of gpt-oss-120b: eight nodes of eight GPUs with 80 GB."""

from __future__ import annotations

import nemo_run as run

from recipes.finetuning import finetuning_recipe, hub_model, tickets
from recipes.schema.recipe import Recipe


def recipe() -> run.Config[Recipe]:
    """Two passes over the Kaggle tickets, 262,144 tokens a step."""
    return finetuning_recipe(
        "gpt_oss_120b_sft",
        model=hub_model("openai/gpt-oss-120b", recompute=True),
        data=tickets(global_batch_size=128),
        max_steps=55,
        lr=1e-5,
        devices=8,
        num_nodes=8,
        tensor=4,
        expert=8,
        pipeline=4,
    )
