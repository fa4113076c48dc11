"""Megatron's sequential experts, which run on a CPU, under the interface of its grouped ones, which adapters expect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.utils import replace_prefix_for_sharding
from megatron.core.transformer.moe.experts import SequentialMLP, TEGroupedMLP


class SequentialLinear:
    """One linear layer of each expert of a SequentialMLP, called like Transformer Engine's grouped linear layer.

    No module: the experts own the weights, and save them.
    """

    def __init__(self, experts: SequentialMLP, name: str) -> None:
        self.linears = [getattr(expert, name) for expert in experts.local_experts]
        self.adds_bias = name == "linear_fc1"  # the grouped fc2 leaves it to the caller, who scales it by the router

    def __call__(self, x: torch.Tensor, tokens_per_expert: Sequence[int]) -> tuple[torch.Tensor, Any]:
        parts = x.split(list(tokens_per_expert))
        outputs, biases = zip(*(linear(part) for linear, part in zip(self.linears, parts, strict=True)), strict=True)
        if self.adds_bias and biases[0] is not None:
            return torch.cat([output + bias for output, bias in zip(outputs, biases, strict=True)]), None
        return torch.cat(outputs), None if biases[0] is None else list(biases)

    def state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> dict[str, Any]:
        return destination

    def sharded_state_dict(self, prefix: str, sharded_offsets: tuple[Any, ...], metadata: Any) -> ShardedStateDict:
        return {}


class GroupedSequentialMLP(SequentialMLP):
    """SequentialMLP with the forward pass of Megatron's grouped one: adapters see all experts' tokens at once."""

    forward = TEGroupedMLP.forward  # type: ignore[assignment]
    _apply_bias = staticmethod(TEGroupedMLP._apply_bias)
    activation_recompute = False

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        """The experts' weights as SequentialMLP saves them, and the adapters under the grouped module's keys."""
        sharded = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        for name in ("linear_fc1", "linear_fc2"):
            part = getattr(self, name).sharded_state_dict(f"{name}.", sharded_offsets, metadata)
            replace_prefix_for_sharding(part, f"{name}.", f"{prefix}experts.{name}.")
            sharded.update({f"{prefix}{key}": value for key, value in part.items()})
        return sharded


def become_grouped(experts: SequentialMLP) -> None:
    """Turn a SequentialMLP, in place, into one that computes all experts' linear layers in one call each."""
    linears = {name: SequentialLinear(experts, name) for name in ("linear_fc1", "linear_fc2")}
    experts.activation_func = experts.config.activation_func  # type: ignore[assignment]
    experts.__class__ = GroupedSequentialMLP
    vars(experts).update(linears)  # no modules, so nothing for torch to register
