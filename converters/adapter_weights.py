"""The tensors of an adapter checkpoint, NeMo's or Megatron-Bridge's, as if each expert had an adapter of its own."""

from __future__ import annotations

from pathlib import Path

import torch

from converters.nemo_folder import MegatronFolder
from converters.storage.weights_reader import WeightsReader

_EXPERTS = ".mlp.experts.experts."


class AdapterWeights(WeightsReader):
    """An adapter's tensors; what all experts share, and Megatron-Bridge stores once for a layer, is read for each.

    Shared are all factors of checkpoints before megatron-bridge 0.6 (peft/utils.py,
    enable_legacy_shared_expert_adapter_loading), and the outer ones with experts_shared_outer_loras.

    Args:
        experts: number of experts of a layer.
    """

    def __init__(self, checkpoint: Path, experts: int) -> None:
        folder = MegatronFolder.find(checkpoint)
        super().__init__(folder.weights, folder.prefix)
        self._experts = experts

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a stacked tensor, of experts (L, E, …)."""
        shape = super().shape(key)
        return (shape[0], self._experts, *shape[1:]) if self._is_shared(key) else shape

    def read(self, key: str, *leading: int, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """The part of a tensor at the given indices of its leading axes, those axes dropped."""
        if self._is_shared(key) and len(leading) > 1:
            leading = (leading[0], *leading[2:])
        return super().read(key, *leading, rows=rows)

    def _is_shared(self, key: str) -> bool:
        return _EXPERTS in key and ".adapter." in key and key in self.tensors and len(self.tensors[key].size) == 3
