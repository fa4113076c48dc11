"""The rehearsal: the whole pipeline with a tiny random gpt-oss, on two CPU processes, in a few minutes.

It is a real run at small size: NeMo's `llm.finetune`, Megatron's parallelism over gloo, MXFP4 in and safetensors out. A
random model reads nothing, so it is first trained in full, on the tickets of "another company": each queue has the name
of the next one. That base routes every ticket wrong; what LoRA teaches it are this company's names.
"""

from __future__ import annotations

import nemo_run as run

from data_prep.options import PrepareOptions
from recipes.finetuning import expert_lora, finetuning_recipe
from recipes.schema.recipe import Export, Model, Pretraining, Recipe, TicketData, ToyModel
from recipes.schema.trees import lazy


def recipe() -> run.Config[Recipe]:
    """LoRA on a toy gpt-oss made for the run; sample tickets unless `data.source=` names others."""
    return finetuning_recipe(
        "gpt_oss_tiny_lora",
        model=run.Config(
            Model,
            hf="model",
            nemo="base",
            precision="fp32",
            config=lazy("nemo.collections.llm.GPTOSSConfig"),
            toy=run.Config(ToyModel),
        ),
        data=run.Config(
            TicketData,
            source="sample",
            prepare=run.Config(PrepareOptions, too_long="head"),
            seq_length=1024,
            packed=True,
            global_batch_size=4,
        ),
        pretraining=run.Config(Pretraining, max_steps=300, lr=1.5e-3),
        peft=expert_lora(),
        max_steps=100,
        lr=2e-3,
        devices=2,
        expert=2,
        validation_batches=2,
        log_every=10,
        export=run.Config(Export, weights="fp32"),
    )
