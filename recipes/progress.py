"""One plain line a step, and the same figures as JSON lines for reports.

NeMo's own progress printer cannot be used: it all-gathers timers on rank 0 alone (nemo_toolkit 2.7.3,
progress_printer.py:153), which hangs the other ranks.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core import parallel_state

from recipes.console import say


class ProgressLines(pl.Callback):
    """Prints step, loss, learning rate and tokens/s, and appends them to `history`; on rank 0 only.

    Tokens are the positions that the model computed, padding included, over all data-parallel ranks.

    Args:
        every: steps between printed lines; the history has all.
    """

    def __init__(self, title: str, history: Path, every: int) -> None:
        self.title = title
        self.every = every
        self.history = history
        self.tokens = 0
        self.since = time.perf_counter()
        self.resumed_at = 0
        # Read now and written again with the first row: when training starts, NeMo's ModelCheckpoint moves the files of
        # an interrupted run to run_0, run_1, …
        self.earlier = history.read_text(encoding="utf-8").splitlines(True) if history.exists() else []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        chunks = getattr(pl_module, "module", pl_module)
        chunks.register_forward_pre_hook(self._count, with_kwargs=True)
        self.resumed_at = trainer.global_step
        trainable = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        total = sum(p.numel() for p in pl_module.parameters())
        self._say(trainer, f"{trainable:,} of {total:,} parameters on this rank are trained")
        if self.resumed_at:
            self._say(trainer, f"resumed at step {self.resumed_at} of {trainer.max_steps}")
        self.tokens, self.since = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        tokens, self.tokens = self.tokens * parallel_state.get_data_parallel_world_size(), 0
        step = trainer.global_step
        row = {"step": step, "loss": _metric(trainer, "reduced_train_loss"), "lr": _learning_rate(trainer)}
        row |= {"grad_norm": _metric(trainer, "grad_norm"), "tokens": tokens, "seconds": seconds}
        self._write(trainer, row)
        if step % self.every == 0 or step == trainer.max_steps:
            rate = f"{tokens / seconds:,.0f} tokens/s"
            self._say(trainer, f"step {step}/{trainer.max_steps}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  {rate}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = _metric(trainer, "val_loss")
        if not trainer.sanity_checking and loss is not None:
            self._write(trainer, {"step": trainer.global_step, "val_loss": loss})
            self._say(trainer, f"step {trainer.global_step}/{trainer.max_steps}  validation loss {loss:.4f}")
        self.since = time.perf_counter()

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if module.training:
            self.tokens += tokens.numel()

    def _say(self, trainer: pl.Trainer, text: str) -> None:
        if trainer.is_global_zero:
            say(f"{self.title}: {text}")

    def _write(self, trainer: pl.Trainer, row: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            # rows of steps after the checkpoint are trained again
            earlier = [line for line in self.earlier if _step_of(line) <= self.resumed_at]
            self.earlier = []
            with self.history.open("a", encoding="utf-8") as file:
                file.writelines([*earlier, json.dumps(row) + "\n"])


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):  # the line that a kill cut off
        return 1 << 60


def _metric(trainer: pl.Trainer, name: str) -> float | None:
    value = trainer.callback_metrics.get(name)
    return None if value is None else float(value)


def _learning_rate(trainer: pl.Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])
