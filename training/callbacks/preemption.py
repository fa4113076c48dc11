"""SIGTERM, as a cluster sends it before it takes a machine away: training saves first, then ends."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from nemo.lightning.pytorch.callbacks import PreemptionCallback

from training.callbacks.best_and_last import validation_follows


class SaveOnTerm(PreemptionCallback):
    """NeMo's callback, also over gloo: NeMo's own (2.7.3) looks for the signal on a CUDA device only."""

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Save and end, but not between a step and its validation: the next step's end will do."""
        if not validation_follows(trainer):
            super().on_train_batch_end(trainer, *arguments)

    @property
    def interrupted(self) -> bool:
        if torch.cuda.is_available() or not self.preemption_supported:
            return super().interrupted
        flag = torch.tensor(int(self._interrupted))
        torch.distributed.broadcast(flag, 0)
        return bool(flag.item())
