"""Best and last checkpoint of a training: saved after each validation, and every N steps where none is due."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from nemo.lightning.pytorch.callbacks import ModelCheckpoint


class BestAndLast(ModelCheckpoint):
    """NeMo's checkpoints, but a step with a validation is saved after it, when its loss is known.

    NeMo's own (2.7.3) saves such a step before: it would name and rank it by the loss of the validation before, and
    resuming from it would skip or repeat one.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._outlived: list[str] | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Have the last step validated wherever the interval ends: it is often the best."""
        if trainer.global_step == trainer.max_steps - 1:
            trainer.val_check_batch = 1

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save the last where the interval says so, and at the end, if no validation follows."""
        interval, step = self._every_n_train_steps, trainer.global_step
        due = step == trainer.max_steps or (interval and step % interval == 0)
        if due and not validation_follows(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the best, then the last; delete what they replace when both are there."""
        if self._should_skip_saving_checkpoint(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        self._outlived = []
        self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)
        outlived, self._outlived = self._outlived, None
        for path in outlived:
            self._remove_checkpoint(trainer, path)

    def _monitor_candidates(self, trainer: pl.Trainer) -> dict[str, torch.Tensor]:
        # MegatronStrategy.training_step logs as "step" the number of steps before it.
        return super()._monitor_candidates(trainer) | {"step": torch.tensor(trainer.global_step)}

    def _remove_checkpoint(self, trainer: pl.Trainer, filepath: str, override_async: bool = False) -> None:
        # The last may be a link to the former best: were that deleted first, a kill could leave nothing to go on from.
        if self._outlived is not None and not self.async_save:
            self._outlived.append(filepath)
        elif self.async_save and not override_async:
            super()._remove_checkpoint(trainer, filepath)  # when the checkpoint that replaces it is whole
        else:
            # NeMo 2.7.3 has a thread delete it where checkpoints are saved aside, and takes away the mark that it is
            # unfinished at once: half deleted it would pass for whole, and the training would end before the thread.
            saved_aside, self.async_save = self.async_save, False
            try:
                super()._remove_checkpoint(trainer, filepath)
            finally:
                self.async_save = saved_aside


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates at the end of the step whose callbacks run now."""
    epoch = trainer.fit_loop.epoch_loop
    if not trainer.enable_validation or (epoch.total_batch_idx + 1) % trainer.val_check_batch != 0:
        return False
    return not epoch.val_loop.skip  # as when there are fewer tickets for validation than a batch holds
