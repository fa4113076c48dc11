"""What all fine-tuning recipes share; a recipe file states only where it differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recipes.config import Evaluation, Export, Recipe, lazy

if TYPE_CHECKING:
    import nemo_run as run


def finetuning(
    name: str,
    *,
    model: run.Config[Any],
    data: run.Config[Any],
    max_steps: int,
    lr: float,
    devices: int,
    num_nodes: int = 1,
    checkpoint_every: int = 50,
    tensor: int = 1,
    expert: int = 1,
    pipeline: int = 1,
    peft: run.Config[Any] | None = None,
    precision: str = "bf16",
    **more: Any,
) -> run.Config[Recipe]:
    """A recipe with the package's defaults: Adam, cosine schedule with warm-up, the last checkpoint kept.

    Args:
        max_steps, lr: optimizer steps, and the learning rate after warm-up.
        devices: processes a node, one a GPU.
        checkpoint_every: steps between checkpoints; an interrupted run goes on from the last.
        tensor, expert, pipeline: ranks along each axis of model parallelism.
        precision: "bf16" (mixed, fp32 master weights) or "fp32".
        more: other fields of `Recipe`.
    """
    import nemo_run as run

    bf16 = precision == "bf16"
    trainer = lazy(
        "nemo.lightning.Trainer",
        devices=devices,
        num_nodes=num_nodes,
        max_steps=max_steps,
        val_check_interval=checkpoint_every,
        limit_val_batches=2,
        log_every_n_steps=10,
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
            bf16=bf16,
            use_distributed_optimizer=bf16,
        ),
        lr_scheduler=lazy(
            "nemo.lightning.pytorch.optim.CosineAnnealingScheduler",
            constant_steps=0,
            min_lr=0.0,
        ),
    )
    checkpoint = lazy(
        "nemo.lightning.ModelCheckpoint",
        save_last=True,
        save_top_k=0,
        every_n_train_steps=checkpoint_every,
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
