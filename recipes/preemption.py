"""SIGTERM, as a cluster sends it before it takes a machine away: training saves first, then ends."""

from __future__ import annotations

import torch
from nemo.lightning.pytorch.callbacks import PreemptionCallback


class SaveOnTerm(PreemptionCallback):
    """NeMo's callback, also over gloo: NeMo's own (2.7.3) looks for the signal on a CUDA device only."""

    @property
    def interrupted(self) -> bool:
        if torch.cuda.is_available() or not self.preemption_supported:
            return super().interrupted
        flag = torch.tensor(int(self._interrupted))
        torch.distributed.broadcast(flag, 0)
        return bool(flag.item())
