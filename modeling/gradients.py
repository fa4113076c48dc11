"""Corrections to what Megatron-core does with gradients across ranks; without them a run depends on its layout."""

from __future__ import annotations

from typing import Any

from megatron.core import parallel_state
from megatron.core.transformer.moe.experts import TEGroupedMLP
from torch import nn


def experts_have_own_replicas() -> bool:
    """Whether the ranks that hold the same expert are others than those that hold the same attention weights.

    So it is with EP; and with TP, since experts are never split by TP, and TP ranks see different tokens.
    """
    return (
        parallel_state.get_expert_model_parallel_world_size() > 1
        or parallel_state.get_tensor_model_parallel_world_size() > 1
    )


def correct_gradients(model: nn.Module) -> nn.Module:
    """Mark parameters so that megatron-core 0.15.3 sums and measures their gradients rightly; call it before DDP wraps.

    1. `ColumnParallelLinear` and `TEGroupedLinear` set `allreduce` from EP alone: at TP > 1 and EP = 1 the TP ranks
       would train their copies of the experts on their own tokens, and the copies drift apart.
    2. `RowParallelLinear` marks the experts' fc2 bias for one more sum over TP: its gradient would be TP times too big.
       It does not mark it as this rank's own either: of TP rank 1's experts, the gradient norm would miss it.
    3. `DotProductAttention` does not mark its sinks as split by TP: the gradient norm would miss those of other ranks.
    """
    parameter: Any
    for module in model.modules():
        if isinstance(module, TEGroupedMLP):
            for parameter in module.parameters():
                parameter.allreduce = not experts_have_own_replicas()
                parameter.sequence_parallel = False
                belongs_to_this_rank(parameter)
    for name, parameter in model.named_parameters():
        if name.endswith(".softmax_offset"):
            belongs_to_this_rank(parameter)
    return model


def belongs_to_this_rank(parameter: Any) -> None:
    """Have the gradient norm count this parameter on every TP rank: it is no copy of another rank's."""
    parameter.tensor_model_parallel = True
    if not hasattr(parameter, "partition_dim"):
        parameter.partition_dim, parameter.partition_stride = 0, 1
