"""LoRA on gpt-oss-120b, attention and experts: eight GPUs with 80 GB that share the experts, two such nodes, or one.

Its experts stay MXFP4 in memory, which is what lets a single GPU of 80 GB train four layers' experts.
"""

from __future__ import annotations

import nemo_run as run

from recipes.finetuning import RECOMPUTED, expert_lora, finetuning_recipe, hub_model, tickets
from recipes.schema.recipe import Recipe

PRESETS = {
    "2x8xh100": ("trainer.num_nodes=2",),
    "1xh100": (
        *RECOMPUTED,
        "peft.expert_layers=[8,17,26,35]",
        "trainer.devices=1",
        "trainer.strategy.expert_model_parallel_size=1",
        "data.global_batch_size=16",
        "trainer.max_steps=440",
    ),
}


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
