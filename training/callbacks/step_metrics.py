"""Metrics of a training: one row of figures a step, the same in the history, the loggers and on the console.

The row goes to history.jsonl, from which pictures are made, to the loggers (TensorBoard and what `logger=` asks for),
and as a plain line to the console. NeMo's own progress printer cannot be used: it all-gathers timers on rank 0 alone
(nemo_toolkit 2.7.3, progress_printer.py:153), which hangs the other ranks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from megatron.core import parallel_state

from common.console import say
from modeling.hf_config import GptOssConfig
from modeling.lora_targets import LoraTargets
from planning.flops import Work, peak_flops, training_flops, visible_pairs
from training.callbacks.communication_share import EVERY, CommunicationShare
from training.callbacks.expert_load import ExpertLoad, entropy, largest_share

Row = dict[str, Any]


class StepMetrics(pl.Callback):
    """Measures every step; on every `every`-th also the experts' load and the GPU's memory, which cost more.

    A row holds `step`, `loss`, `lr`, `grad_norm`, `tokens` (positions of the whole batch, padding included), `seconds`,
    `tokens_per_second_per_gpu`; on a GPU whose peak is known `mfu`; on every `every`-th step `expert_entropy` and
    `expert_largest_share`, one figure a layer, and on a GPU `memory_gb`, the fullest GPU's peak of allocated memory;
    now and then `communication_share`. After a validation a row holds `step` and `val_loss`.

    Args:
        every: steps between printed lines; the history has all.
    """

    def __init__(
        self,
        title: str,
        history: Path,
        every: int,
        config: GptOssConfig,
        lora: LoraTargets | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self.title, self.history, self.every = title, history, every
        self.config, self.lora, self.loggers = config, lora, loggers
        self.load = ExpertLoad(config.num_layers, config.num_experts)
        self.communication = CommunicationShare()
        self.work = torch.zeros(3, dtype=torch.float64)
        self.since = 0.0
        self.started_at: int | None = None
        # Read now and written again with the first step: when training starts, NeMo's ModelCheckpoint moves the files
        # of an interrupted run to run_0, run_1, …
        self.earlier = history.read_text(encoding="utf-8").splitlines(True) if history.exists() else []

    # ---- when ---------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model = getattr(pl_module, "module", pl_module)
        model.register_forward_pre_hook(self._count, with_kwargs=True)
        self.load.watch(model)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.started_at is None:
            self._begin(trainer, pl_module)
        self.load.counting = self._is_due(trainer, trainer.global_step + 1)
        if (trainer.global_step + 1) % EVERY == 0:
            self.communication.start()
        self.since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = _metric(trainer, "reduced_train_loss")  # waits for the GPU
        seconds = time.perf_counter() - self.since
        row = {"step": trainer.global_step, "loss": loss, "lr": _learning_rate(trainer)}
        row |= {"grad_norm": _metric(trainer, "grad_norm"), **self._figures(trainer, seconds)}
        if (share := self.communication.stop(seconds)) is not None:
            row["communication_share"] = share
        self._write(trainer, row)
        if self._is_due(trainer, trainer.global_step):
            self._say(trainer, line(row, trainer.max_steps))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = _metric(trainer, "val_loss")
        if not trainer.sanity_checking and loss is not None:
            self._write(trainer, {"step": trainer.global_step, "val_loss": loss})
            self._say(trainer, f"step {trainer.global_step}/{trainer.max_steps}  validation loss {loss:.4f}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step < trainer.max_steps:
            self._say(trainer, f"stopped at step {trainer.global_step}: the validation loss fell no more")
        self._close("success")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close("failed")

    # ---- what ---------------------------------------------------------------------------------------------------

    def _figures(self, trainer: pl.Trainer, seconds: float) -> Row:
        """Figures of the step that has just ended, summed over all ranks."""
        due, world = self._is_due(trainer, trainer.global_step), torch.distributed.get_world_size()
        parts = [self.work, self.load.counts.flatten()] if due else [self.work]
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
        total = torch.cat([part.to(device) for part in parts])
        torch.distributed.all_reduce(total)
        self.work.zero_()
        self.load.counts.zero_()
        # Tensor-parallel ranks see the same tokens.
        copies = parallel_state.get_tensor_model_parallel_world_size()
        work = Work(*(total[:3] / copies).tolist())
        row: Row = {"tokens": round(work.tokens), "seconds": seconds}
        row["tokens_per_second_per_gpu"] = work.tokens / seconds / world
        peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        if peak:
            row["mfu"] = training_flops(self.config, work, self.lora).total / (seconds * world * peak)
        if due:
            counts = total[3:].view(self.config.num_layers, -1).cpu()
            row["expert_entropy"] = entropy(counts).tolist()
            row["expert_largest_share"] = largest_share(counts).tolist()
            if torch.cuda.is_available():
                memory = torch.tensor(torch.cuda.max_memory_allocated() / 1e9, device=device)
                torch.distributed.all_reduce(memory, torch.distributed.ReduceOp.MAX)
                row["memory_gb"] = memory.item()
        return row

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not module.training:
            return
        tokens = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if tokens is None:  # NeMo 2.7.3 gives them to the first pipeline stage alone (llm/gpt/model/base.py:95)
            return
        ranks = parallel_state.get_context_parallel_world_size()  # each has its part of every sequence
        packed = kwargs.get("packed_seq_params")
        if packed is not None:
            lengths = packed.cu_seqlens_q.diff()
        else:
            lengths = torch.full((tokens.shape[0],), tokens.shape[1] * ranks, device=tokens.device)
        full, windowed = visible_pairs(lengths, self.config.sliding_window)
        self.work = self.work.to(tokens.device)
        self.work += torch.stack([full.new_tensor(tokens.numel()), full / ranks, windowed / ranks])

    # ---- where to -----------------------------------------------------------------------------------------------

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started_at = trainer.global_step
        trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        total = sum(p.numel() for p in pl_module.parameters())
        self._say(trainer, f"{trained:,} of {total:,} parameters on this rank are trained")
        if self.started_at:
            self._say(trainer, f"resumed at step {self.started_at} of {trainer.max_steps}")
        if trainer.is_global_zero:
            # rows of steps after the checkpoint are trained again
            kept = [row for row in self.earlier if _step_of(row) <= self.started_at]
            self.history.write_text("".join(kept), encoding="utf-8")

    def _is_due(self, trainer: pl.Trainer, step: int) -> bool:
        return step % self.every == 0 or step == trainer.max_steps

    def _write(self, trainer: pl.Trainer, row: Row) -> None:
        if not trainer.is_global_zero:
            return
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for logger in self.loggers:
            logger.log_metrics(scalars(row), row["step"])

    def _say(self, trainer: pl.Trainer, text: str) -> None:
        if trainer.is_global_zero:
            say(f"{self.title}: {text}")

    def _close(self, status: str) -> None:
        for logger in self.loggers:
            logger.finalize(status)


def scalars(row: Row) -> dict[str, float]:
    """A row's figures by the names that loggers show, a figure a layer as `expert_entropy/layer_00`."""
    flat: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, list):
            flat |= {f"{name}/layer_{layer:02}": figure for layer, figure in enumerate(value)}
        elif value is not None and name != "step":
            flat[name] = value
    return flat


def line(row: Row, steps: int) -> str:
    """A row as the console shows it."""
    parts = [f"step {row['step']}/{steps}", f"loss {row['loss']:.4f}", f"lr {row['lr']:.2e}"]
    if row["grad_norm"] is not None:
        parts.append(f"grad norm {row['grad_norm']:.2f}")
    parts.append(f"{row['tokens_per_second_per_gpu']:,.0f} tokens/s/GPU")
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.1%}")
    if "memory_gb" in row:
        parts.append(f"{row['memory_gb']:.1f} GB")
    if "communication_share" in row:
        parts.append(f"communication {row['communication_share']:.0%}")
    parts.append(f"busiest expert {max(row['expert_largest_share']):.0%}")
    return "  ".join(parts)


def _step_of(row: str) -> int:
    try:
        return int(json.loads(row)["step"])
    except (ValueError, KeyError):  # the line that a kill cut off
        return 1 << 60


def _metric(trainer: pl.Trainer, name: str) -> float | None:
    value = trainer.callback_metrics.get(name)
    return None if value is None else float(value)


def _learning_rate(trainer: pl.Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])
