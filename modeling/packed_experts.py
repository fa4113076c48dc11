"""Experts that stay MXFP4 in memory: for LoRA, which never changes them.

A bf16 value decoded from MXFP4 is exact, so the model computes what it would with bf16 experts, in a third of the
memory. Each expert is decoded when its tokens come, and again in the backward pass; no decoded weight is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from common.errors import ConfigurationError
from modeling.expert_linear import ExpertLinear, grouped_linear, grouped_product, mark_expert_parameter
from modeling.mxfp4 import BLOCK
from modeling.mxfp4_on_device import decode


class PackedGroupedLinear(ExpertLinear):
    """With frozen weights in MXFP4.

    Buffers: `weight_blocks` uint8 (E_local, out, in/32, 16) and `weight_scales` uint8 (E_local, out, in/32); `bias` is
    a parameter (E_local, out). A checkpoint fills them; they start as zeros.
    """

    weight_blocks: torch.Tensor
    weight_scales: torch.Tensor

    def __init__(
        self,
        num_gemms: int,
        input_size: int,
        output_size: int,
        *,
        config: Any,
        bias: bool,
        skip_bias_add: bool,
        **_: Any,
    ) -> None:
        super().__init__()
        if input_size % BLOCK:
            raise ConfigurationError(
                f"experts of {input_size} inputs do not divide into MXFP4 blocks of {BLOCK}: import them as bf16."
            )
        self.skip_bias_add = skip_bias_add
        self.decoded_bytes = config.decoded_expert_bytes
        given = config.use_cpu_initialization or config.init_model_with_meta_device  # by torch's default device
        device = None if given else torch.cuda.current_device()
        shape = (num_gemms, output_size, input_size // BLOCK)
        self.register_buffer("weight_blocks", torch.zeros(*shape, BLOCK // 2, dtype=torch.uint8, device=device))
        self.register_buffer("weight_scales", torch.zeros(shape, dtype=torch.uint8, device=device))
        zeros = torch.zeros(num_gemms, output_size, dtype=config.params_dtype, device=device)
        self.bias = nn.Parameter(zeros) if bias else None
        if self.bias is not None:
            mark_expert_parameter(self.bias)

    def product(self, x: torch.Tensor, tokens_per_expert: Sequence[int]) -> torch.Tensor:
        counts = [int(count) for count in tokens_per_expert]
        return _PackedProduct.apply(x, self.weight_blocks, self.weight_scales, counts, self.decoded_bytes)


class _PackedProduct(torch.autograd.Function):
    """The grouped product of tokens with packed weights, of which autograd keeps nothing but the packed weights."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, blocks: torch.Tensor, scales: torch.Tensor, counts: list[int], most: int
    ) -> torch.Tensor:
        ctx.save_for_backward(blocks, scales)
        ctx.counts, ctx.most = counts, most
        out = x.new_empty(len(x), blocks.shape[1])
        for rows, weight, part in _decoded(blocks, scales, counts, most, x.dtype):
            out[rows] = grouped_linear(x[rows], weight, part)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        blocks, scales = ctx.saved_tensors
        gradient = gradient.contiguous()
        out = gradient.new_empty(len(gradient), scales.shape[2] * BLOCK)
        for rows, weight, part in _decoded(blocks, scales, ctx.counts, ctx.most, gradient.dtype):
            out[rows] = grouped_product(gradient[rows], weight, part)
        return out, None, None, None, None


def _decoded(
    blocks: torch.Tensor, scales: torch.Tensor, counts: list[int], most: int, dtype: torch.dtype
) -> Iterator[tuple[slice, torch.Tensor, list[int]]]:
    """Groups of experts that have tokens: which rows these are, weights (e, out, in), and the experts' counts.

    Args:
        most: bytes that a group's decoded weights may take; one expert is always decoded.
    """
    each = scales[0].numel() * BLOCK * (2 if dtype == torch.bfloat16 else 2 + dtype.itemsize)
    busy = [expert for expert, count in enumerate(counts) if count]
    size, start = max(1, most // each), 0
    for first in range(0, len(busy), size):
        group = busy[first : first + size]
        part = [counts[expert] for expert in group]
        weight = decode(_of(blocks, group), _of(scales, group)).to(dtype)
        yield slice(start, start + sum(part)), weight, part
        del weight  # before the next group is decoded
        start += sum(part)


def _of(packed: torch.Tensor, experts: list[int]) -> torch.Tensor:
    """Some experts' part of blocks or scales; not a copy where they are neighbours."""
    first, last = experts[0], experts[-1]
    return packed[first : last + 1] if last - first + 1 == len(experts) else packed[experts]
