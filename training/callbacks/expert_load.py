"""How evenly the routers of a training spread tokens over the experts, counted by the routers themselves."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.moe.router import Router
from torch import nn


class ExpertLoad:
    """Counts, for each MoE layer, the tokens that its router sent to each expert, while `counting` is set.

    `counts` is (L, E) over the global layers: this rank's tokens in the layers that it has, zeros elsewhere. Summed
    over all ranks it is the whole batch's: tensor parallelism brings sequence parallelism, which gives each rank tokens
    of its own, data-parallel ranks have their own batches, and pipeline stages their own layers.
    """

    def __init__(self, layers: int, experts: int) -> None:
        self.counts = torch.zeros(layers, experts, dtype=torch.float64)
        self.counting = False

    def watch(self, model: nn.Module) -> None:
        """Count in every router of this rank's part of the model."""
        for module in model.modules():
            if isinstance(module, Router):
                module.register_forward_hook(self._count)

    def _count(self, router: Any, _: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        # Under recomputation a layer runs twice, the first time without gradients: counted is the second.
        if not (self.counting and router.training and torch.is_grad_enabled()):
            return
        tokens = output[1].sum(dim=0).double()  # (T, E), True where a token goes
        self.counts = self.counts.to(tokens.device)
        self.counts[router.layer_number - 1] += tokens


def entropy(counts: torch.Tensor) -> torch.Tensor:
    """Entropy of each layer's shares over that of an even spread: 1 for even, 0 for all tokens at one expert.

    Args:
        counts: (L, E), tokens.
    Returns:
        (L,).
    """
    shares = _shares(counts)
    return -torch.xlogy(shares, shares).sum(dim=1) / torch.log(torch.tensor(float(counts.shape[1])))


def largest_share(counts: torch.Tensor) -> torch.Tensor:
    """The busiest expert's share of each layer's tokens, (L, E) → (L,): 1/E when all are alike."""
    return _shares(counts).amax(dim=1)


def _shares(counts: torch.Tensor) -> torch.Tensor:
    return counts / counts.sum(dim=1, keepdim=True)
