"""On SIGTERM, which a cluster sends before it takes a machine away, a training saves a checkpoint and ends."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from nemo.lightning.pytorch.callbacks import PreemptionCallback

from training.callbacks.best_and_last import validation_follows


class SaveOnSigterm(PreemptionCallback):
    """NeMo's PreemptionCallback, also over gloo: NeMo's own (2.7.3) passes the signal on through a CUDA tensor only."""

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Save and end; between a step and its validation wait for the end of the next step."""
        if not validation_follows(trainer):
            super().on_train_batch_end(trainer, *arguments)

    @property
    def interrupted(self) -> bool:
        if torch.cuda.is_available() or not self.preemption_supported:
            return super().interrupted
        flag = torch.tensor(int(self._interrupted))
        torch.distributed.broadcast(flag, 0)
        return bool(flag.item())
