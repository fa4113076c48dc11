"""One linear layer of all experts of a rank, in torch: what Transformer Engine's grouped linear layer is on GPUs.

Megatron's grouped experts (`TEGroupedMLP`) build their layers from a specification: with these they run where
Transformer Engine is missing, under the same checkpoint keys, with one tensor of all experts instead of one for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedStateDict, ShardedTensor
from megatron.core.tensor_parallel import random
from megatron.core.tensor_parallel.random import get_expert_parallel_rng_tracker_name
from torch import nn

from modeling.gradients import belongs_to_this_rank, experts_have_own_replicas

# Public since torch 2.10.
_GROUPED_MM: Any = getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def grouped_linear(x: torch.Tensor, weight: torch.Tensor, tokens_per_expert: Sequence[int]) -> torch.Tensor:
    """Multiply each expert's tokens with its own matrix, all experts at once.

    Args:
        x: (T, in), sorted by expert.
        weight: (E, out, in).
        tokens_per_expert: E counts whose sum is T; zeros are allowed.
    Returns:
        (T, out).
    """
    return grouped_product(x, weight.transpose(1, 2), tokens_per_expert)


def grouped_product(x: torch.Tensor, matrices: torch.Tensor, tokens_per_expert: Sequence[int]) -> torch.Tensor:
    """(T, in) sorted by expert, times each expert's own of (E, in, out) → (T, out)."""
    if len(x) and _has_kernel(matrices):
        ends = torch.tensor(tokens_per_expert).cumsum(0, dtype=torch.int32).to(x.device)
        return _GROUPED_MM(x.contiguous(), matrices, offs=ends)
    return torch.cat([part @ matrix for part, matrix in zip(x.split(list(tokens_per_expert)), matrices, strict=True)])


def _has_kernel(weight: torch.Tensor) -> bool:
    """Whether torch's grouped product takes these matrices: rows of whole 16 bytes; on CUDA bf16, from Hopper on."""
    if _GROUPED_MM is None or any(size * weight.element_size() % 16 for size in weight.shape[1:]):
        return False
    if weight.is_cuda:
        return weight.dtype == torch.bfloat16 and torch.cuda.get_device_capability(weight.device) >= (9, 0)
    return weight.dtype in (torch.bfloat16, torch.float32)


def expert_shards(
    module: nn.Module, prefix: str, sharded_offsets: tuple[tuple[int, int, int], ...]
) -> ShardedStateDict:
    """A module's tensors (E_local, …) as slices of the stacks of all experts, one axis after `sharded_offsets`.

    Args:
        sharded_offsets: axis, index and length of the axes before the experts', such as the layers'.
    """
    experts = (
        len(sharded_offsets),
        parallel_state.get_expert_model_parallel_rank(),
        parallel_state.get_expert_model_parallel_world_size(),
    )
    replica = (0, 0, parallel_state.get_expert_data_parallel_rank())
    return {
        f"{prefix}{name}": ShardedTensor.from_rank_offsets(
            f"{prefix}{name}",
            tensor,
            *sharded_offsets,
            experts,
            replica_id=replica,
            prepend_axis_num=len(sharded_offsets),
        )
        for name, tensor in module.state_dict(keep_vars=True).items()
    }


def mark_expert_parameter(parameter: Any) -> None:
    """Have Megatron sum an expert parameter's gradient over the expert's replicas, and count it on every TP rank."""
    parameter.allreduce = not experts_have_own_replicas()
    parameter.sequence_parallel = False
    belongs_to_this_rank(parameter)


class ExpertLinear(nn.Module):
    """A linear layer of each expert of this rank; a subclass has the weights, and `bias` (E_local, out) or None.

    Called as Megatron calls Transformer Engine's: (T, in) sorted by expert and the experts' counts give (T, out), and
    the biases where `skip_bias_add` leaves them to the caller, who scales them by the router's probabilities.
    """

    bias: nn.Parameter | None
    skip_bias_add: bool

    def product(self, x: torch.Tensor, tokens_per_expert: Sequence[int]) -> torch.Tensor:
        """(T, in) → (T, out), without the biases."""
        raise NotImplementedError

    def forward(
        self, x: torch.Tensor, tokens_per_expert: Sequence[int]
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor] | None]:
        output = self.product(x, tokens_per_expert)
        if self.bias is None:
            return output, None
        if self.skip_bias_add:
            return output, list(self.bias)
        counts = torch.tensor(tokens_per_expert, device=output.device)
        return output + self.bias.repeat_interleave(counts, dim=0, output_size=len(output)), None

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        """Weights and biases under their names, the experts by their global indices."""
        return expert_shards(self, prefix, sharded_offsets)


class GroupedLinear(ExpertLinear):
    """With weights as they are: weight (E_local, out, in)."""

    def __init__(
        self,
        num_gemms: int,
        input_size: int,
        output_size: int,
        *,
        config: Any,
        init_method: Callable[[torch.Tensor], Any],
        bias: bool,
        skip_bias_add: bool,
        is_expert: bool = True,
        tp_comm_buffer_name: str | None = None,
        tp_group: Any = None,
    ) -> None:
        super().__init__()
        self.skip_bias_add = skip_bias_add
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        factory: dict[str, Any] = {"dtype": config.params_dtype, "device": device}
        self.weight = nn.Parameter(torch.empty(num_gemms, output_size, input_size, **factory))
        self.bias = nn.Parameter(torch.zeros(num_gemms, output_size, **factory)) if bias else None
        if config.perform_initialization and not self.weight.is_meta:
            tracker: Any = random.get_cuda_rng_tracker()
            with tracker.fork(get_expert_parallel_rng_tracker_name()):
                for matrix in self.weight:
                    init_method(matrix.detach())
        for parameter in self.parameters():
            mark_expert_parameter(parameter)

    def product(self, x: torch.Tensor, tokens_per_expert: Sequence[int]) -> torch.Tensor:
        return grouped_linear(x, self.weight, tokens_per_expert)
