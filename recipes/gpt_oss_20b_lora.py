"""LoRA on gpt-oss-20b, attention and experts: one GPU with 40 GB or more, eight that share the batch, or one of 24 GB.

Its experts stay MXFP4 in memory. `preset=cpu` runs the whole pipeline at full size on a machine without a GPU.
"""

from __future__ import annotations

import nemo_run as run

from recipes.finetuning import RECOMPUTED, expert_lora, finetuning_recipe, hub_model, tickets
from recipes.schema.recipe import Recipe

PRESETS = {
    "8xh100": ("trainer.devices=8", "data.global_batch_size=64", "trainer.max_steps=110"),
    "24gb": (*RECOMPUTED, "peft.dim=8"),
    # a proof more than a training: minutes a step
    "cpu": (
        *RECOMPUTED,
        "peft.dim=8",
        "peft.expert_layers=[7,15,23]",
        "data.seq_length=512",
        "data.prepare.too_long=head",
        "data.global_batch_size=1",
        "trainer.max_steps=6",
        "trainer.val_check_interval=3",
        "trainer.limit_val_batches=1",
        "checkpoint.every_n_train_steps=3",
        "evaluation.max_tickets=4",
        "evaluation.batch_size=4",
        "export.weights=mxfp4",
    ),
}


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
