"""The parts that all fine-tuning recipes share; a recipe file states only its differences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data_prep.options import PrepareOptions
from recipes.schema.recipe import Evaluation, Export, Model, Recipe, TicketData
from recipes.schema.trees import lazy

if TYPE_CHECKING:
    import nemo_run as run

RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
RECOMPUTED = tuple(f"model.config.{name}={value}" for name, value in RECOMPUTE.items())
"""The same as overrides, for presets."""


def hub_model(name: str, *, recompute: bool = False) -> run.Config[Model]:
    """A model of the Hub, or in a folder by `model.hf=`, trained in bf16.

    Args:
        recompute: keep only the input of each layer and compute the layer again in the backward pass.
    """
    import nemo_run as run

    overrides = RECOMPUTE if recompute else {}
    return run.Config(Model, hf=name, nemo="base", config=lazy("nemo.collections.llm.GPTOSSConfig", **overrides))


def tickets(*, global_batch_size: int, seq_length: int = 2048) -> run.Config[TicketData]:
    """The Kaggle tickets, several packed into each sequence; others by `data.source=`."""
    import nemo_run as run

    return run.Config(
        TicketData,
        source="kaggle",
        prepare=run.Config(PrepareOptions),
        seq_length=seq_length,
        packed=True,
        global_batch_size=global_batch_size,
    )


def expert_lora() -> run.Config[Any]:
    """Adapters of rank 16 on attention and on every expert."""
    return lazy(
        "modeling.expert_lora.GptOssLoRA",
        target_modules=["linear_qkv", "linear_proj", "experts.linear_fc1", "experts.linear_fc2"],
        dim=16,
        alpha=32,
    )


def finetuning_recipe(
    name: str,
    *,
    model: run.Config[Any],
    data: run.Config[Any],
    max_steps: int,
    lr: float,
    devices: int,
    num_nodes: int = 1,
    checkpoint_every: int = 50,
    validation_batches: int = 8,
    log_every: int = 1,
    tensor: int = 1,
    expert: int = 1,
    pipeline: int = 1,
    peft: run.Config[Any] | None = None,
    **more: Any,
) -> run.Config[Recipe]:
    """A recipe with the package's defaults: Adam, cosine schedule with warm-up to a tenth of the rate, clipping.

    Args:
        max_steps, lr: optimizer steps, and the learning rate after warm-up.
        devices: processes a node, one a GPU.
        checkpoint_every: steps between validations, each with a checkpoint; an interrupted run goes on from the last.
        validation_batches: global batches that a validation takes.
        log_every: steps between lines on the console.
        tensor, expert, pipeline: ranks along each axis of model parallelism.
        more: other fields of `Recipe`.
    """
    import nemo_run as run

    trainer = lazy(
        "nemo.lightning.Trainer",
        devices=devices,
        num_nodes=num_nodes,
        max_steps=max_steps,
        val_check_interval=checkpoint_every,
        limit_val_batches=validation_batches,
        log_every_n_steps=log_every,
        strategy=lazy(
            "nemo.lightning.MegatronStrategy",
            tensor_model_parallel_size=tensor,
            expert_model_parallel_size=expert,
            pipeline_model_parallel_size=pipeline,
        ),
    )
    optim = lazy(
        "nemo.lightning.MegatronOptimizerModule",
        config=lazy(
            "megatron.core.optimizer.OptimizerConfig",
            optimizer="adam",
            lr=lr,
            weight_decay=0.01,
            adam_beta1=0.9,
            adam_beta2=0.98,
            clip_grad=1.0,
        ),
        lr_scheduler=lazy(
            "nemo.lightning.pytorch.optim.CosineAnnealingScheduler",
            constant_steps=0,
            min_lr=lr / 10,
        ),
    )
    checkpoint = lazy(
        "training.callbacks.best_and_last.BestAndLast",
        monitor="val_loss",
        save_last="link",
        save_top_k=1,
        every_n_train_steps=checkpoint_every,
        filename="{step}-{val_loss:.6f}",
        save_on_train_epoch_end=False,
    )
    fields = {"evaluation": run.Config(Evaluation), "export": run.Config(Export)} | more
    return run.Config(
        Recipe,
        name=name,
        model=model,
        data=data,
        trainer=trainer,
        optim=optim,
        checkpoint=checkpoint,
        peft=peft,
        **fields,
    )
