"""Training with NeMo's own `llm.finetune`: the objects of a recipe, completed with what follows from the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from modeling import cpu_backend

ON_CPU = cpu_backend.activate()  # before the imports below: NeMo and Megatron-core look for CUDA while they load

from lightning.pytorch.callbacks import EarlyStopping  # noqa: E402
from megatron.core import dist_checkpointing  # noqa: E402
from megatron.core.transformer.enums import AttnBackend  # noqa: E402
from nemo import lightning as nl  # noqa: E402
from nemo.collections import llm  # noqa: E402
from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer  # noqa: E402
from nemo.collections.llm.gpt.data.fine_tuning import FineTuningDataModule  # noqa: E402
from nemo.collections.llm.gpt.data.packed_sequence import PackedSequenceSpecs  # noqa: E402

from converters.extra_states import check_states  # noqa: E402
from data_prep.nemo_dataset import packed_sequence_arguments  # noqa: E402
from errors import CheckpointError, ConfigurationError  # noqa: E402
from modeling import attention  # noqa: E402
from modeling.hf_config import GptOssConfig  # noqa: E402
from modeling.model_config import nemo_config  # noqa: E402
from recipes.checkpoints import last_checkpoint, remove_former_lasts, step_of  # noqa: E402
from recipes.config import Deferred, Recipe, lora_targets  # noqa: E402
from recipes.console import rank  # noqa: E402
from recipes.continuing import GoesOnExactly  # noqa: E402
from recipes.loggers import loggers_of  # noqa: E402
from recipes.preemption import SaveOnTerm  # noqa: E402
from recipes.watching import Watch  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
MIXED_PRECISION: dict[str, Literal["bf16-mixed", "32"]] = {"bf16": "bf16-mixed", "fp32": "32"}


@dataclass(frozen=True)
class Training:
    """One call of `llm.finetune`.

    Attributes:
        start: NeMo checkpoint whose weights training starts from.
        hf_config: config.json of the model.
        tokenizer: folder of the tokenizer.
        dataset: folder with training.jsonl and validation.jsonl.
        dataset_arguments: for NeMo's dataset class, such as the prompt template.
        out: folder for checkpoints and history.
    """

    title: str
    start: Path
    hf_config: Path
    tokenizer: Path
    dataset: Path
    dataset_arguments: dict[str, Any]
    out: Path
    recipe: Recipe

    def run(self) -> None:
        """Train to the end, from the last checkpoint in `out` where there is one."""
        if self._is_finished():
            return
        if ON_CPU:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        if attention.this_machine().capability is not None:
            check_states(self.start / "weights", GptOssConfig.from_file(self.hf_config))
        tokenizer = AutoTokenizer(str(self.tokenizer))
        llm.finetune(
            model=llm.GPTOSSModel(self._model_config(), tokenizer=tokenizer),
            data=self._data(tokenizer),
            trainer=self._trainer(),
            log=self._log(),
            optim=self._optimizer(),
            resume=nl.AutoResume(
                # the tokenizer is given above
                restore_config=nl.RestoreConfig(path=str(self.start), load_artifacts=False),
                resume_if_exists=True,
                resume_ignore_no_checkpoint=True,
            ),
            peft=self.recipe.peft.build() if self.recipe.peft else None,
            tokenizer=None,
        )
        if rank() == 0:
            remove_former_lasts(self.out)

    def _is_finished(self) -> bool:
        """Whether an interrupted run had reached its last step, or stopped early: nothing is left to train.

        The last step's checkpoint has no optimizer to go on with.
        """
        try:
            weights = last_checkpoint(self.out) / "weights"
        except CheckpointError:
            return False
        state = dist_checkpointing.load_common_state_dict(str(weights))
        callbacks = state.get("callbacks", {}).values()  # the last step's has none
        stops = [(each["wait_count"], each["patience"]) for each in callbacks if "patience" in each]
        out_of_patience = any(waited >= patience for waited, patience in stops)
        return out_of_patience or int(state["global_step"]) >= int(self.recipe.trainer.arguments["max_steps"])

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.recipe.model.precision]

    def _model_config(self) -> Any:
        overrides = dict(self.recipe.model.config.arguments)
        machine, data = attention.this_machine(), self.recipe.data
        if machine.capability is not None:
            backend = attention.attention_backend(
                machine, packed=data.packed, precision=self.recipe.model.precision, context=self.recipe.layout.context
            )
            overrides.setdefault("attention_backend", AttnBackend[backend])
        elif data.packed:
            raise ConfigurationError("the CPU backend trains on no packed sequences: set data.packed=false.")
        config = GptOssConfig.from_file(self.hf_config)
        return nemo_config(config, seq_length=self.recipe.data.seq_length, dtype=self.dtype, **overrides)

    def _data(self, tokenizer: AutoTokenizer) -> FineTuningDataModule:
        data = self.recipe.data
        return FineTuningDataModule(
            str(self.dataset),
            seq_length=data.seq_length,
            tokenizer=tokenizer,
            micro_batch_size=data.micro_batch_size,
            global_batch_size=data.global_batch_size,
            seed=data.seed,
            num_workers=0 if ON_CPU else 4,
            dataset_kwargs=dict(self.dataset_arguments),
            packed_sequence_specs=self._packed() if data.packed else None,
        )

    def _packed(self) -> PackedSequenceSpecs:
        return PackedSequenceSpecs(**packed_sequence_arguments(self.dataset, self.recipe.data.seq_length))

    def _optimizer(self) -> Any:
        """The recipe's optimizer; a schedule that names no length covers the training, 5 % of it warm-up."""
        optim, steps = self.recipe.optim, int(self.recipe.trainer.arguments["max_steps"])
        schedule = optim.arguments.get("lr_scheduler")
        if not isinstance(schedule, Deferred):
            return optim.build()
        derived = {"max_steps": steps, "warmup_steps": max(1, steps // 20)}
        return optim.build(lr_scheduler=schedule.build(**(derived | schedule.arguments)))

    def _watch(self) -> Watch:
        """What reports the training, from its last checkpoint on."""
        arguments = self.recipe.trainer.arguments
        try:
            step = step_of(last_checkpoint(self.out))
        except CheckpointError:
            step = 0
        title = f"{self.out.parent.name} {self.title}"
        return Watch(
            self.title,
            self.out / "history.jsonl",
            int(arguments.get("log_every_n_steps", 10)),
            GptOssConfig.from_file(self.hf_config),
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
        steps = int(self.recipe.trainer.arguments["max_steps"])
        return self.recipe.trainer.build(
            val_check_interval=min(steps, int(self.recipe.trainer.arguments.get("val_check_interval", steps))),
            # counted over all batches: those of an epoch get fewer when a training goes on from a checkpoint
            check_val_every_n_epoch=None,
            strategy=strategy.build(**(derived | parallel)),
            accelerator="cpu" if ON_CPU else "gpu",
            plugins=nl.MegatronMixedPrecision(precision=MIXED_PRECISION[self.recipe.model.precision]),
            callbacks=[GoesOnExactly(self.recipe.seed), self._watch(), SaveOnTerm(), *self._early_stop()],
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

    def _log(self) -> nl.NeMoLogger:
        return nl.NeMoLogger(
            log_dir=str(self.out.parent),
            name=self.out.name,
            use_datetime_version=False,
            ckpt=self.recipe.checkpoint.build(),
            update_logger_directory=False,
        )
