"""Exact resume: a resumed training uses the same batches and random numbers as one that was never interrupted.

Weights, optimizer state, learning rate and the number of consumed samples are in NeMo's checkpoints; these are not.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed


class ExactResume(pl.Callback):
    """Makes the batches and random numbers of a step depend only on the recipe's seed and the step."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count batches and samples from the checkpoint that this start resumes.

        NeMo's sampler begins with the sample that comes next and is as long as what is left of the training, while
        Lightning 2.4 (`_TrainingEpochLoop.reset`) takes the batches before the checkpoint for fetched ones: the epoch
        would end too early, and the samples after the checkpoint would be trained on twice.

        NeMo 2.7.3 (`FineTuningDataModule._create_dataloader`) counts samples from the step at which any loader was
        made last: were that of validation made later, the next checkpoint would send a third start back to here.
        """
        trainer.fit_loop.epoch_loop.restarting = False
        trainer.fit_loop.epoch_loop.val_loop.setup_data()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed dropout by the step: NeMo stores no random states."""
        seed = self.seed * 1_000_003 + trainer.global_step
        torch.manual_seed(seed)
        model_parallel_cuda_manual_seed(seed % 2**31)
