"""Best and last checkpoint of a training: saved after each validation, and every N steps where none is due.

The one before the last stays until the next is written, in case the last turns out to be damaged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from nemo.lightning.ckpt_utils import ckpt_to_dir
from nemo.lightning.pytorch.callbacks import ModelCheckpoint

from pipeline.checkpoints import superseded


class BestAndLast(ModelCheckpoint):
    """NeMo's checkpoints, but a step with a validation is saved after it, when its loss is known.

    NeMo's own (2.7.3) saves such a step before: it would name and rank it by the loss of the validation before, and
    resuming from it would skip or repeat one.
    """

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
        """Save the best, then the last."""
        if self._should_skip_saving_checkpoint(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)

    def _save_last_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, torch.Tensor]) -> None:
        super()._save_last_checkpoint(trainer, monitor_candidates)
        best = {ckpt_to_dir(path).name for path in self.best_k_models}
        folder = Path(str(self.dirpath)).parent
        old = trainer.strategy.broadcast(superseded(folder, trainer.global_step, best))
        for path in old:
            if self.async_save:
                super()._remove_checkpoint(trainer, f"{path}.ckpt")  # when the one that is being saved is whole
            else:
                self._remove_checkpoint(trainer, f"{path}.ckpt", override_async=True)

    def _monitor_candidates(self, trainer: pl.Trainer) -> dict[str, torch.Tensor]:
        # MegatronStrategy.training_step logs as "step" the number of steps before it.
        return super()._monitor_candidates(trainer) | {"step": torch.tensor(trainer.global_step)}

    def _remove_checkpoint(self, trainer: pl.Trainer, filepath: str, override_async: bool = False) -> None:
        if not override_async:  # as Lightning asks when it has saved a better or later one: see `superseded`
            return
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
