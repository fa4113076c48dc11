"""The functions of Transformer Engine's compiled extension that gpt-oss's training calls, written in torch.

`REPLACED` names each with what stands in. Signatures are those of Transformer Engine 2.12.0's callers, in
transformer_engine/pytorch/{cpp_extensions,module,optimizers,attention}; what they leave open follows its C++ comments.
`CALLS` counts how often each ran, so that a test can tell that a path was taken.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

CALLS: Counter[str] = Counter()
DTYPES = {"kFloat32": torch.float32, "kFloat16": torch.float16, "kBFloat16": torch.bfloat16, "kByte": torch.uint8}


def _dtype(given: Any, default: torch.dtype) -> torch.dtype:
    """Transformer Engine passes its own enumeration, torch's type, or None."""
    return default if given is None else given if isinstance(given, torch.dtype) else DTYPES[given.name]


# ---- matrix products ----------------------------------------------------------------------------------------------


def _product(a: Tensor, a_turned: bool, b: Tensor, b_turned: bool) -> Tensor:
    """cuBLAS counts in columns, so that in rows the second matrix comes first: op(B) · op(A), summed in fp32."""
    a, b = a.reshape(-1, a.shape[-1]).float(), b.reshape(-1, b.shape[-1]).float()
    return (b.T if b_turned else b) @ (a.T if a_turned else a)


def _store(value: Tensor, out: Tensor, accumulate: bool) -> Tensor:
    value = value.reshape(out.shape)
    return out.add_(value) if accumulate else out.copy_(value)


def generic_gemm(
    a: Tensor,
    a_turned: bool,
    b: Tensor,
    b_turned: bool,
    out: Tensor | None,
    quantizer: Any,
    out_dtype: Any,
    bias: Tensor | None,
    bias_type: Any,
    gelu: bool,
    gelu_in: Any,
    grad: bool,
    workspace: Any,
    workspace_size: int,
    accumulate: bool,
    use_split_accumulator: bool,
    *,
    comm_overlap: Any,
    alpha: float,
    **_: Any,
) -> tuple[Tensor, Tensor | None, None, None]:
    """torch's product, with the bias added, or in a backward pass (`grad`) the bias's gradient: the sum of B's rows."""
    assert quantizer is None
    assert comm_overlap is None
    assert not gelu
    assert alpha == 1.0
    value = _product(a, a_turned, b, b_turned)
    bias_gradient = None
    if bias is not None and bias.numel():
        if grad:
            bias_gradient = b.reshape(-1, b.shape[-1]).float().sum(0).to(bias.dtype)
        else:
            value = value + bias.float()
    if not b_turned:
        value = value.reshape(*b.shape[:-1], value.shape[-1])
    value = value.to(_dtype(out_dtype, a.dtype if out is None else out.dtype))
    return value if out is None else _store(value, out, accumulate), bias_gradient, None, None


def te_general_grouped_gemm(
    a: Sequence[Tensor],
    a_turned: bool,
    b: Sequence[Tensor],
    b_turned: bool,
    out: Sequence[Tensor],
    out_dtype: Any,
    splits: Sequence[int] | None,
    bias: Sequence[Tensor],
    bias_type: Any,
    single_output: bool,
    gelu_in: Any,
    grad: bool,
    workspaces: Any,
    workspace_size: int,
    accumulate: bool,
    *_: Any,
) -> Sequence[Tensor]:
    """One product after another; `single_output` has all results below each other in one tensor."""
    outs = out[0].split(list(splits or ())) if single_output else out
    for left, right, target, its_bias in zip(a, b, outs, bias, strict=True):
        value = _product(left, a_turned, right, b_turned)
        if its_bias.numel():
            if grad:
                its_bias.copy_(right.float().sum(0))
            else:
                value = value + its_bias.float()
        _store(value.to(target.dtype), target, accumulate)
    return bias


# ---- norm ---------------------------------------------------------------------------------------------------------


def rmsnorm_fwd(
    x: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor | None,
    quantizer: Any,
    dtype: Any,
    margin: int,
    zero_centered: bool,
) -> tuple[Tensor, None, Tensor]:
    """x (…, H) over its root mean square times weight (H,), and 1 / root mean square (…,), in fp32."""
    assert quantizer is None
    assert not zero_centered
    inverse = torch.rsqrt(x.float().square().mean(-1) + eps)
    value = (x.float() * inverse[..., None] * weight.float()).to(_dtype(dtype, x.dtype))
    return value if out is None else out.copy_(value), None, inverse


def rmsnorm_bwd(
    gradient: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, margin: int, zero_centered: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight, from the normalised rows n = x · inverse."""
    normal, rows = x.float() * inverse[..., None], gradient.float()
    scaled = rows * weight.float()
    dx = inverse[..., None] * (scaled - normal * (scaled * normal).mean(-1, keepdim=True))
    return dx.to(x.dtype), (rows * normal).reshape(-1, weight.numel()).sum(0).to(weight.dtype)


# ---- attention ----------------------------------------------------------------------------------------------------


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float, window: tuple[int, int], sinks: Tensor | None) -> Tensor:
    """Causal attention of one sequence in fp32: q (S, heads, d), k and v (S, groups, d) → (S, heads, d).

    Args:
        window: keys before and after a query that it sees, -1 for all.
        sinks: (heads,), logits of one more key for each head, whose value is zero.
    """
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1).float() for t in (k, v))
    scores = torch.einsum("shd,thd->hst", q.float(), k) * scale
    distance = torch.arange(len(q))[:, None] - torch.arange(len(k))
    hidden = distance < 0
    if window[0] >= 0:
        hidden = hidden | (distance > window[0])
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.float()[:, None, None].expand(-1, len(q), 1)], -1)
    weights = scores.softmax(-1)[..., : len(k)]
    return torch.einsum("hst,thd->shd", weights, v).to(q.dtype)


def _sequences(q: Tensor, k: Tensor, v: Tensor, layout: str, ends: list[int], attend: Callable[..., Tensor]) -> Tensor:
    """Attention of each sequence: packed ones (T, heads, d) end at `ends`, others are (S, B, heads, d)."""
    if layout == "NVTE_THD_THD_THD":
        parts = [attend(q[i:j], k[i:j], v[i:j]) for i, j in itertools.pairwise(ends)]
        return torch.cat([*parts, q.new_zeros(len(q) - ends[-1], *q.shape[1:])])
    assert layout == "NVTE_SBHD_SBHD_SBHD", layout
    return torch.stack([attend(q[:, i], k[:, i], v[:, i]) for i in range(q.shape[1])], 1)


def fused_attn_fwd(
    max_q: int,
    max_kv: int,
    training: bool,
    scale: float,
    dropout: float,
    zero_fill: bool,
    layout: Any,
    bias_type: Any,
    mask: Any,
    softmax: Any,
    window: tuple[int, int],
    bottom_right: bool,
    ends: Tensor,
    ends_kv: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *rest: Any,
) -> list[Tensor]:
    """cuDNN's attention: the output, and what `fused_attn_bwd` gets back: statistics, random state, sinks."""
    sinks: Tensor | None = rest[8]  # (1, heads, 1, 1), fp32
    assert mask.name in ("NVTE_CAUSAL_MASK", "NVTE_PADDING_CAUSAL_MASK"), mask
    assert dropout == 0
    assert ends.dtype == torch.int32
    assert sinks is None or (sinks.dtype == torch.float32 and sinks.shape == (1, q.shape[-2], 1, 1))
    CALLS[f"{layout.name} {softmax.name} window {window[0]} {q.dtype}"] += 1
    with torch.no_grad():
        out = _fused(q, k, v, layout, ends, scale, window, sinks)
    return [out, torch.zeros(1), torch.zeros(2, dtype=torch.int64), *([] if sinks is None else [sinks])]


def _fused(q: Tensor, k: Tensor, v: Tensor, layout: Any, ends: Tensor, scale: float, window: Any, sinks: Any) -> Tensor:
    flat = None if sinks is None else sinks.reshape(-1)
    attend = partial(_attention, scale=scale, window=window, sinks=flat)
    return _sequences(q, k, v, layout.name, ends.tolist(), attend)


def fused_attn_bwd(
    max_q: int,
    max_kv: int,
    scale: float,
    dropout: float,
    zero_fill: bool,
    layout: Any,
    bias_type: Any,
    mask: Any,
    softmax: Any,
    window: tuple[int, int],
    bottom_right: bool,
    deterministic: bool,
    ends: Tensor,
    ends_kv: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    gradient: Tensor,
    fake_dtype: Any,
    dtype: Any,
    kept: Sequence[Tensor],
    *_: Any,
) -> list[Tensor]:
    """Gradients of q, k, v, of a bias that is not there, and of the sinks, by autograd through the forward pass."""
    learnable = softmax.name == "NVTE_LEARNABLE_SOFTMAX"
    with torch.enable_grad():
        q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
        sinks = [kept[-1].detach().requires_grad_()] if learnable else []
        value = _fused(q, k, v, layout, ends, scale, window, sinks[0] if sinks else None)
        found = torch.autograd.grad(value, [q, k, v, *sinks], gradient.reshape(value.shape))
    return [*found[:3], torch.empty(0), found[3] if learnable else torch.empty(0)]


def _packed_parts(ends: Tensor) -> Iterator[tuple[int, int, int]]:
    bounds = ends.tolist()
    yield from ((i, *pair) for i, pair in enumerate(itertools.pairwise(bounds)))


def convert_thd_to_bshd(packed: Tensor, ends: Tensor, batch: int, longest: int) -> Tensor:
    """Sequences that lie one after another (T, …) → (batch, longest, …), padded with zeros."""
    out = packed.new_zeros(batch, int(longest), *packed.shape[1:])
    for i, first, last in _packed_parts(ends):
        out[i, : last - first] = packed[first:last]
    return out


def convert_bshd_to_thd(padded: Tensor, ends: Tensor, tokens: int) -> Tensor:
    """The inverse of `convert_thd_to_bshd`."""
    out = padded.new_zeros(int(tokens), *padded.shape[2:])
    for i, first, last in _packed_parts(ends):
        out[first:last] = padded[i, : last - first]
    return out


# ---- optimizer ----------------------------------------------------------------------------------------------------


def multi_tensor_scale(chunk: int, overflow: Tensor, lists: list[list[Tensor]], scale: float) -> None:
    """Copy the first list into the second, times `scale`."""
    for source, target in zip(*lists, strict=True):
        target.copy_(source * scale)


def multi_tensor_l2norm(
    chunk: int, overflow: Tensor, lists: list[list[Tensor]], each: bool = False
) -> tuple[Tensor, Tensor]:
    """The norm of all tensors together (1,), and of each."""
    norms = torch.stack([tensor.float().norm() for tensor in lists[0]])
    return norms.norm().reshape(1), norms


def multi_tensor_adam(
    chunk: int,
    overflow: Tensor,
    lists: list[list[Tensor]],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    decoupled: int,
    bias_correction: int,
    weight_decay: float,
) -> None:
    """AdamW on lists of gradients, parameters and both moments."""
    assert decoupled == 1
    correction1, correction2 = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1.0, 1.0)
    for gradient, parameter, first, second in zip(*lists, strict=True):
        gradient = gradient.float()
        first.mul_(beta1).add_(gradient, alpha=1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = (first / correction1) / ((second / correction2).sqrt() + eps) + weight_decay * parameter.float()
        parameter.copy_(parameter.float() - lr * update)


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def counting(*arguments: Any, **named: Any) -> Any:
        CALLS[function.__name__] += 1
        return function(*arguments, **named)

    return counting


REPLACED: dict[str, Callable[..., Any]] = {
    function.__name__: _counted(function)
    for function in (
        generic_gemm,  # cuBLASLt
        te_general_grouped_gemm,  # cuBLASLt on several streams
        rmsnorm_fwd,  # CUDA kernels of libtransformer_engine.so, here and below
        rmsnorm_bwd,
        fused_attn_fwd,  # cuDNN's graphs
        fused_attn_bwd,
        convert_thd_to_bshd,
        convert_bshd_to_thd,
        multi_tensor_scale,
        multi_tensor_l2norm,
        multi_tensor_adam,
    )
}
