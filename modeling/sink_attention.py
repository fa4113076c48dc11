"""Attention with sinks and sliding windows in torch: where Transformer Engine is missing, or has no kernel for a case.

Exact, dense and packed, with memory linear in the sequence: scores exist for one block of queries at a time, and a
sliding layer's block meets the keys of its window only. On a GPU torch's flex attention does the same in one kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.utils import is_layer_window_attention
from torch.utils.weak import WeakIdKeyDictionary

BLOCK = 256
"""Queries whose scores exist at a time."""


class SinkAttention(DotProductAttention):
    """Megatron's core attention, causal whatever mask it is given, for packed sequences too."""

    def __init__(self, config: Any, layer_number: int, *arguments: Any, **named: Any) -> None:
        super().__init__(config, layer_number, *arguments, **named)
        sliding = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.reach = int(config.window_size[0]) if sliding else None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """(S, B, N, D), or (T, N, D) packed; keys and values (…, G, D) → (S, B, N·D), or (T, N·D)."""
        sinks = self.softmax_offset
        assert isinstance(sinks, torch.Tensor)
        packed = packed_seq_params is not None
        # (B, heads, S, D); a pack is one batch row
        q, k, v = (x[None].transpose(1, 2) if packed else x.permute(1, 2, 0, 3) for x in (query, key, value))
        ends = _ends(packed_seq_params) if packed_seq_params is not None else None
        if q.is_cuda:
            out = flex_attention(q, k, v, sinks, ends, self.reach, self.softmax_scale)
        else:
            bounds = [0, q.shape[2]] if ends is None else [*ends.tolist(), q.shape[2]]  # padding may be behind the last
            out = block_attention(q, k, v, sinks, bounds, self.reach, self.softmax_scale)
        return out[0].transpose(0, 1).flatten(1) if packed else out.permute(2, 0, 1, 3).flatten(2)


def _ends(packed: PackedSeqParams) -> torch.Tensor:
    """Where the sequences of a pack begin, and the last one ends."""
    ends = packed.cu_seqlens_q if packed.cu_seqlens_q_padded is None else packed.cu_seqlens_q_padded
    assert ends is not None
    return ends


# ---- in blocks ----------------------------------------------------------------------------------------------------


def block_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: torch.Tensor,
    bounds: Sequence[int],
    reach: int | None,
    scale: float,
) -> torch.Tensor:
    """Softmax of causal scores and one more, the head's sink, whose weight goes nowhere; computed in fp32.

    Args:
        q: (B, N, S, D). k, v: (B, G, S, D), each for N/G heads.
        sinks: (N,).
        bounds: of the sequences along S, which do not see each other: 0, …, S.
        reach: how many positions back a query sees; None for all.
    Returns:
        (B, N, S, D), in q's dtype.
    """
    return _BlockAttention.apply(q, k, v, sinks, list(bounds), reach, scale)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sinks: torch.Tensor,
        bounds: list[int],
        reach: int | None,
        scale: float,
    ) -> torch.Tensor:
        heads, groups = q.shape[1], k.shape[1]
        out = torch.empty_like(q)  # as q lies in memory: the caller's transposition back then copies nothing
        normalizer = q.new_empty(q.shape[:3], dtype=torch.float32)  # log of the sum of exponentials
        sink = sinks.float().view(1, groups, heads // groups, 1)
        for rows, keys, hidden in _blocks(bounds, reach, q.device):
            scores = _scores(q[:, :, rows], k[:, :, keys], scale).masked_fill_(hidden, float("-inf"))
            largest = torch.maximum(scores.amax(-1), sink)
            weights = scores.sub_(largest[..., None]).exp_()
            total = weights.sum(-1) + (sink - largest).exp()
            mean = _times(weights, v[:, :, keys]) / total[..., None]
            out[:, :, rows] = mean.flatten(1, 2).to(out.dtype)
            normalizer[:, :, rows] = (largest + total.log()).flatten(1, 2)
        ctx.save_for_backward(q, k, v, sinks, out, normalizer)
        ctx.bounds, ctx.reach, ctx.scale = bounds, reach, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        q, k, v, sinks, out, normalizer = ctx.saved_tensors
        groups, each = k.shape[1], q.shape[1] // k.shape[1]
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
        dsinks = torch.zeros(groups, each, dtype=torch.float32, device=q.device)
        sink = sinks.float().view(1, groups, each, 1)
        for rows, keys, hidden in _blocks(ctx.bounds, ctx.reach, q.device):
            log_total = normalizer[:, :, rows].unflatten(1, (groups, each))
            scores = _scores(q[:, :, rows], k[:, :, keys], ctx.scale).masked_fill_(hidden, float("-inf"))
            weights = scores.sub_(log_total[..., None]).exp_()
            above = gradient[:, :, rows].float().unflatten(1, (groups, each))
            through = (above * out[:, :, rows].float().unflatten(1, (groups, each))).sum(-1)
            dv[:, :, keys] += weights.flatten(2, 3).transpose(2, 3) @ above.flatten(2, 3)
            # the softmax's Jacobian: weight · (its own gradient − the mean of all)
            inner = _times_transposed(above, v[:, :, keys]).sub_(through[..., None]).mul_(weights)
            dq[:, :, rows] = (_times(inner, k[:, :, keys]) * ctx.scale).flatten(1, 2).to(q.dtype)
            at = q[:, :, rows].float().unflatten(1, (groups, each)).flatten(2, 3)
            dk[:, :, keys] += inner.flatten(2, 3).transpose(2, 3) @ at * ctx.scale
            dsinks -= ((sink - log_total).exp() * through).sum((0, 3))
        return dq, dk.to(k.dtype), dv.to(v.dtype), dsinks.flatten().to(sinks.dtype), None, None, None


def _blocks(
    bounds: Sequence[int], reach: int | None, device: torch.device
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Each block of queries, the keys that they may see, and which of these each does not: bool (queries, keys)."""
    for start, end in pairwise(bounds):
        for first in range(start, end, BLOCK):
            last = min(first + BLOCK, end)
            oldest = start if reach is None else max(start, first - reach)
            distance = torch.arange(first, last, device=device)[:, None] - torch.arange(oldest, last, device=device)
            hidden = distance < 0
            yield slice(first, last), slice(oldest, last), hidden if reach is None else hidden | (distance > reach)


def _scores(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """(B, N, m, D) and (B, G, n, D) → fp32 (B, G, N/G, m, n)."""
    return _times_transposed((q.float() * scale).unflatten(1, (k.shape[1], -1)), k)


def _times(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(B, G, R, m, n) times (B, G, n, D) → (B, G, R, m, D)."""
    return (weights.flatten(2, 3) @ x.float()).unflatten(2, weights.shape[2:4])


def _times_transposed(x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """(B, G, R, m, D) times (B, G, n, D) transposed → (B, G, R, m, n)."""
    return (x.flatten(2, 3) @ k.float().transpose(2, 3)).unflatten(2, x.shape[2:4])


# ---- flex attention -----------------------------------------------------------------------------------------------


def flex_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: torch.Tensor,
    ends: torch.Tensor | None,
    reach: int | None,
    scale: float,
) -> torch.Tensor:
    """`block_attention` by torch's flex attention; `ends` are the bounds as a tensor, None for one sequence.

    With l the log of a query's sum of exponentials, a sink s takes exp(s) / (exp(s) + exp(l)) of the weights: the
    output is what flex attention gives times sigmoid(l − s).
    """
    from torch.nn.attention.flex_attention import AuxRequest

    mask, wanted = _mask(q.shape[2], q.device, ends, reach), AuxRequest(lse=True)
    out, beside = _flex()(q, k, v, block_mask=mask, scale=scale, enable_gqa=True, return_aux=wanted)
    return out * torch.sigmoid(beside.lse.float() - sinks.float()[:, None])[..., None].to(out.dtype)


_masks = WeakIdKeyDictionary()
"""Of packs, which all layers of a forward pass share, by their tensor of bounds: {reach: mask}."""


def _mask(length: int, device: torch.device, ends: torch.Tensor | None, reach: int | None) -> Any:
    if ends is None:
        return _dense_mask(length, device, reach)
    masks = _masks.get(ends)
    if masks is None:
        masks = _masks[ends] = {}
    if reach not in masks:
        bounds = torch.nn.functional.pad(ends.to(torch.int64), (0, 1), value=length)
        sequence = torch.bucketize(torch.arange(length, device=device), bounds, right=True)
        masks[reach] = _block_mask(length, device, reach, sequence)
    return masks[reach]


@lru_cache(16)
def _dense_mask(length: int, device: torch.device, reach: int | None) -> Any:
    return _block_mask(length, device, reach, torch.zeros(length, dtype=torch.int64, device=device))


def _block_mask(length: int, device: torch.device, reach: int | None, sequence: torch.Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(_batch: Any, _head: Any, row: Any, column: Any) -> Any:
        near = row >= column if reach is None else (row >= column) & (row - column <= reach)
        return near & (sequence[row] == sequence[column])

    return create_block_mask(seen, None, None, length, length, device=str(device))


@cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention as flex

    return torch.compile(flex, dynamic=False) if torch.cuda.is_available() else flex
