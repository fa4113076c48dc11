"""Which ranks sum the gradients of the experts."""

from __future__ import annotations

from megatron.core import parallel_state
from megatron.core.transformer.moe.experts import SequentialMLP, TEGroupedMLP
from torch import nn


def experts_have_own_replicas() -> bool:
    """Whether the ranks that hold the same expert are others than those that hold the same attention weights.

    So it is with EP; and with TP, since experts are never split by TP, and TP ranks see different tokens.
    """
    return (
        parallel_state.get_expert_model_parallel_world_size() > 1
        or parallel_state.get_tensor_model_parallel_world_size() > 1
    )


def sum_over_replicas(model: nn.Module) -> nn.Module:
    """Let Megatron sum the experts' gradients over all ranks that hold the same experts; call it before DDP wraps.

    megatron-core 0.15.3 (`ColumnParallelLinear`, `TEGroupedLinear`) sets `allreduce` from EP alone, so that at TP > 1
    and EP = 1 the TP ranks train their copies of the experts on their own tokens, and the copies drift apart.
    """
    for module in model.modules():
        if isinstance(module, SequentialMLP | TEGroupedMLP):
            for parameter in module.parameters():
                parameter.allreduce = not experts_have_own_replicas()  # type: ignore[attr-defined]
    return model
