"""Training with NeMo's own `llm.finetune`: the recipe's objects, completed with settings that the machine decides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from modeling import cpu_backend

ON_CPU = cpu_backend.activate()  # before the imports below: NeMo and Megatron-core look for CUDA while they load

from lightning.pytorch.callbacks import EarlyStopping  # noqa: E402
from megatron.core import dist_checkpointing  # noqa: E402
from megatron.core.optimizer import Adam  # noqa: E402  # pyright: ignore[reportAttributeAccessIssue]
from megatron.core.transformer.enums import AttnBackend  # noqa: E402
from nemo import lightning as nl  # noqa: E402
from nemo.collections import llm  # noqa: E402
from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer  # noqa: E402
from nemo.collections.llm.gpt.data.packed_sequence import PackedSequenceSpecs  # noqa: E402

from common.console import rank, say  # noqa: E402
from common.errors import CheckpointError, ConfigurationError  # noqa: E402
from converters.extra_states import check_states  # noqa: E402
from converters.nemo_folder import TOKENIZER, WEIGHTS, config_of  # noqa: E402
from converters.nemo_reader import NemoReader  # noqa: E402
from converters.storage.checked_folder import ensure_safe  # noqa: E402
from data_prep.nemo_dataset import NEMO_DATASET_KWARGS, packed_sequence_arguments  # noqa: E402
from modeling import attention  # noqa: E402
from modeling.hf_config import GptOssConfig  # noqa: E402
from modeling.model_config import DTYPES, nemo_config  # noqa: E402
from modeling.precision import Precision  # noqa: E402
from pipeline.checkpoints import (  # noqa: E402
    keep_best_and_last,
    last_checkpoint,
    loaded_with,
    newest_whole,
    set_aside,
    step_of,
)
from pipeline.history import HISTORY  # noqa: E402
from pipeline.sweep_folder import title_of  # noqa: E402
from recipes.schema.recipe import Recipe, lora_targets  # noqa: E402
from recipes.schema.trees import Deferred  # noqa: E402
from training.callbacks.best_and_last import BestAndLast  # noqa: E402
from training.callbacks.exact_resume import ExactResume  # noqa: E402
from training.callbacks.hang_watch import HangWatch  # noqa: E402
from training.callbacks.preemption import SaveOnSigterm  # noqa: E402
from training.callbacks.step_metrics import StepMetrics  # noqa: E402
from training.loggers import loggers_of  # noqa: E402
from training.rank_zero import by_rank_zero  # noqa: E402
from training.ticket_data import TicketDataModule  # noqa: E402

# megatron-core 0.15.3 takes torch's AdamW where it finds neither Transformer Engine's nor apex's, and cannot save that
# one sharded: its state has a scalar (distrib_optimizer.py, sharded_param_state_dp_reshardable).
SHARDS_OPTIMIZER = Adam is not torch.optim.AdamW
MIXED_PRECISION: dict[Precision, Literal["bf16-mixed", "32"]] = {"bf16": "bf16-mixed", "fp32": "32"}


@dataclass(frozen=True)
class Training:
    """One call of `llm.finetune`.

    Attributes:
        title: what the console and services call it.
        start: NeMo checkpoint whose weights training starts from.
        like: the import that has the model's config.json and tokenizer.
        dataset: prepared folder.
        out: folder for checkpoints and history.
    """

    title: str
    recipe: Recipe
    start: Path
    like: Path
    dataset: Path
    out: Path

    def run(self) -> None:
        """Train to the end, from the last checkpoint in `out` where there is one.

        Raises:
            CheckpointError: a checkpoint that NeMo would load could run code, or is damaged.
        """
        path = by_rank_zero(f"{self.title}: resumed", self._resumed)
        resumed = Path(path) if path else None
        if resumed and self._is_finished(resumed):
            return
        for checkpoint in {self.start, *(loaded_with(resumed) if resumed else ())}:
            ensure_safe(checkpoint / WEIGHTS)  # Megatron's loaders run what a checkpoint names
        if ON_CPU:
            torch.set_num_threads(cpu_backend.threads_of_rank())
        if attention.this_machine().capability is not None:
            check_states(self.start / "weights", self.config)
        tokenizer = AutoTokenizer(str(self.like / "context" / TOKENIZER), trust_remote_code=False)
        checkpoints = self.recipe.checkpoint.build()
        llm.finetune(
            model=llm.GPTOSSModel(self._model_config(), tokenizer=tokenizer),
            data=self._data(tokenizer),
            trainer=self._trainer(),
            log=self._log(checkpoints),
            optim=self._optimizer(),
            resume=resume_from(self.start, resumed),
            peft=self.recipe.peft.build() if self.recipe.peft else None,
            tokenizer=None,
        )
        if rank() == 0:
            keep_best_and_last(self.out, checkpoints.save_top_k)

    def _resumed(self) -> str | None:
        """Path of the checkpoint that this training goes on from; damaged ones that are newer are set aside."""
        resumed, damaged = newest_whole(self.out)
        for path, damage in damaged.items():
            before = resumed.name if resumed else self.start
            say(f"{self.title}: {damage}; it lies in {set_aside(path)} now, {before} is used")
        return str(resumed) if resumed else None

    def _is_finished(self, resumed: Path) -> bool:
        """Whether an interrupted run had reached its last step, or stopped early: nothing is left to train.

        The last step's checkpoint has no optimizer to go on with.
        """
        ensure_safe(resumed / WEIGHTS)
        state = dist_checkpointing.load_common_state_dict(str(resumed / WEIGHTS))
        callbacks = state.get("callbacks", {}).values()  # the last step's has none
        stops = [(each["wait_count"], each["patience"]) for each in callbacks if "patience" in each]
        out_of_patience = any(waited >= patience for waited, patience in stops)
        return out_of_patience or int(state["global_step"]) >= self.recipe.max_steps

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.recipe.model.precision]

    @cached_property
    def config(self) -> GptOssConfig:
        return config_of(self.like, "import the base again")

    def _model_config(self) -> Any:
        overrides = dict(self.recipe.model.config.arguments)
        overrides["packed_experts"] = self._packed_experts()
        overrides["filled_by_checkpoint"] = True
        machine, data = attention.this_machine(), self.recipe.data
        backend = attention.attention_backend(
            machine, packed=data.packed, precision=self.recipe.model.precision, context=self.recipe.layout.context
        )
        backend = overrides.get("attention_backend", backend)
        overrides["attention_backend"] = AttnBackend[backend]
        if rank() == 0:
            experts = "MXFP4" if overrides["packed_experts"] else "as they are trained"
            say(f"{self.title}: {attention.in_words(backend)}, experts in memory {experts}")
        return nemo_config(self.config, seq_length=self.recipe.data.seq_length, dtype=self.dtype, **overrides)

    def _packed_experts(self) -> bool:
        """Whether the checkpoint to start from keeps its experts MXFP4, which LoRA alone can train on."""
        packed = NemoReader(self.start).packed
        if packed and self.recipe.peft is None:
            raise ConfigurationError(
                f"{self.start} keeps its experts MXFP4, which cannot be trained in full: set model.experts=bf16 and "
                "model.nemo to another folder, or import the base again with --experts bf16."
            )
        return packed

    def _data(self, tokenizer: AutoTokenizer) -> TicketDataModule:
        data = self.recipe.data
        return TicketDataModule(
            str(self.dataset),
            seq_length=data.seq_length,
            tokenizer=tokenizer,
            micro_batch_size=data.micro_batch_size,
            global_batch_size=data.global_batch_size,
            seed=data.seed,
            num_workers=0 if ON_CPU else 4,
            dataset_kwargs=dict(NEMO_DATASET_KWARGS),
            packed_sequence_specs=self._packed() if data.packed else None,
        )

    def _packed(self) -> PackedSequenceSpecs:
        return PackedSequenceSpecs(**packed_sequence_arguments(self.dataset, self.recipe.data.seq_length))

    def _optimizer(self) -> Any:
        """The recipe's optimizer in the model's precision; a schedule that names no length covers the training."""
        optim, steps = self.recipe.optim, self.recipe.max_steps
        mixed = self.recipe.model.precision == "bf16"  # fp32 master weights, sharded over the data-parallel ranks
        derived = {"bf16": mixed, "use_distributed_optimizer": mixed and SHARDS_OPTIMIZER}
        config = optim.arguments["config"]
        parts = {"config": config.build(**(derived | config.arguments))}
        schedule = optim.arguments.get("lr_scheduler")
        if isinstance(schedule, Deferred):
            length = {"max_steps": steps, "warmup_steps": max(1, steps // 20)}
            parts["lr_scheduler"] = schedule.build(**(length | schedule.arguments))
        return optim.build(**parts)

    def _step_metrics(self) -> StepMetrics:
        """The callback that measures the training, from its last checkpoint on."""
        try:
            step = step_of(last_checkpoint(self.out))
        except CheckpointError:
            step = 0
        title = f"{title_of(self.out.parent)} {self.title}"
        return StepMetrics(
            self.title,
            self.out / HISTORY,
            int(self.recipe.trainer.arguments.get("log_every_n_steps", 10)),
            self.config,
            lora_targets(self.recipe),
            loggers_of(self.recipe.logger, self.out, title, step) if rank() == 0 else (),
        )

    def _trainer(self) -> nl.Trainer:
        strategy = self.recipe.trainer.arguments["strategy"]
        parallel = strategy.arguments
        derived: dict[str, Any] = {
            # Megatron's MoE training demands sequence parallelism with TP, and its expert biases forbid expert TP.
            "sequence_parallel": parallel.get("tensor_model_parallel_size", 1) > 1,
            "expert_tensor_parallel_size": 1,
            "pipeline_dtype": self.dtype,
        }
        if ON_CPU:
            derived |= {"process_group_backend": "gloo", "ckpt_async_save": False}
        steps = self.recipe.max_steps
        return self.recipe.trainer.build(
            val_check_interval=min(steps, int(self.recipe.trainer.arguments.get("val_check_interval", steps))),
            # counted over all batches: those of an epoch get fewer when a training goes on from a checkpoint
            check_val_every_n_epoch=None,
            strategy=strategy.build(**(derived | parallel)),
            accelerator="cpu" if ON_CPU else "gpu",
            plugins=nl.MegatronMixedPrecision(precision=MIXED_PRECISION[self.recipe.model.precision]),
            callbacks=[
                ExactResume(self.recipe.seed),
                self._step_metrics(),
                SaveOnSigterm(),
                HangWatch(self.recipe.hang_minutes),
                *self._early_stop(),
            ],
            # NeMo's own printer calls a collective on rank 0 alone (progress_printer.py:153) and hangs the others.
            enable_progress_bar=False,
            logger=False,
            use_distributed_sampler=False,
        )

    def _early_stop(self) -> list[EarlyStopping]:
        if not self.recipe.patience:
            return []
        # not strict: a training with fewer tickets for validation than a batch holds has no validation
        return [EarlyStopping("val_loss", patience=self.recipe.patience, strict=False, check_on_train_epoch_end=False)]

    def _log(self, checkpoints: BestAndLast) -> nl.NeMoLogger:
        return nl.NeMoLogger(
            log_dir=str(self.out.parent),
            name=self.out.name,
            use_datetime_version=False,
            ckpt=checkpoints,
            update_logger_directory=False,
        )


class _Resume(nl.AutoResume):
    """NeMo's, from a checkpoint that is known to be whole: NeMo's own takes the newest by its name."""

    checkpoint: Path | None = None

    def _find_trainer_ckpt_path(self) -> Path | None:
        return self.checkpoint


def resume_from(start: Path, resumed: Path | None = None) -> nl.AutoResume:
    """What NeMo loads: the checkpoint `resumed` of this training, else the weights of `start`; never a context."""
    resume = _Resume(
        # model and tokenizer are given; `load_context` would call whatever callables io.json names
        restore_config=nl.RestoreConfig(path=str(start), load_artifacts=False),
        resume_if_exists=True,
        resume_ignore_no_checkpoint=True,
    )
    resume.checkpoint = resumed
    return resume
