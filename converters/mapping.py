"""The one table: Hugging Face name ↔ Megatron key ↔ layout change. Import, export and verification read it.

Shape letters: L layers, E experts, H hidden, F expert width, V vocabulary, D head width, N heads, G groups,
Q = (N + 2G)·D, A = N·D. Experts appear here as rows of one expert, (out, in), whatever format a side stores them in:
MXFP4 and the transposed bf16 parameter are matters of the reader, sharding and stacking of the checkpoint format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modeling.hf_config import GptOssConfig
from modeling.mxfp4 import BLOCK

BLOCKS, SCALES = "_blocks", "_scales"
"""Ends of the names of an expert matrix's parts as MXFP4, in Hugging Face's files and in packed NeMo checkpoints."""
ToNemo = Callable[[Sequence[torch.Tensor], GptOssConfig], torch.Tensor]
ToHf = Callable[[torch.Tensor, GptOssConfig], list[torch.Tensor]]


def keep(parts: Sequence[torch.Tensor], config: GptOssConfig) -> torch.Tensor:
    """The only part, unchanged."""
    (part,) = parts
    return part


def keep_all(whole: torch.Tensor, config: GptOssConfig) -> list[torch.Tensor]:
    """The inverse of `keep`."""
    return [whole]


def fuse_qkv(parts: Sequence[torch.Tensor], config: GptOssConfig) -> torch.Tensor:
    """q (N·D, …), k (G·D, …), v (G·D, …) → rows by group: its N/G query heads, its key head, its value head."""
    rest = parts[0].shape[1:]
    grouped = [part.reshape(config.num_groups, -1, config.head_dim, *rest) for part in parts]
    return torch.cat(grouped, dim=1).reshape(config.qkv_size, *rest)


def split_qkv(whole: torch.Tensor, config: GptOssConfig) -> list[torch.Tensor]:
    """The inverse of `fuse_qkv`."""
    rest = whole.shape[1:]
    heads = config.num_heads // config.num_groups
    grouped = whole.reshape(config.num_groups, heads + 2, config.head_dim, *rest)
    return [part.reshape(-1, *rest) for part in grouped.split([heads, 1, 1], dim=1)]


def deinterleave(parts: Sequence[torch.Tensor], config: GptOssConfig) -> torch.Tensor:
    """Rows g0 u0 g1 u1 … → g0 g1 … u0 u1 …, (2F, …)."""
    (part,) = parts
    # as bytes in numpy, which copies whole rows: torch copies strided rows value by value, up to ten times as slowly
    rows = part.reshape(len(part), -1).contiguous().view(torch.uint8).numpy()
    return torch.from_numpy(np.concatenate([rows[::2], rows[1::2]])).view(part.dtype).reshape(part.shape)


def interleave(whole: torch.Tensor, config: GptOssConfig) -> list[torch.Tensor]:
    """The inverse of `deinterleave`."""
    gate, up = whole.chunk(2)
    return [torch.stack([gate, up], dim=1).reshape(whole.shape)]


@dataclass(frozen=True)
class Entry:
    """One Megatron tensor and the Hugging Face tensors that it is made of.

    Attributes:
        nemo: key below `module.`; a layer's tensors are stacked along a leading L axis, experts along E after it.
        hf: names, `{layer}` for the layer's number.
        shape: of one layer's (one expert's) Megatron tensor.
        hf_shapes: of one layer's (one expert's rows of the) Hugging Face tensors.
        per_layer: whether there is an L axis; tensors without one are kept as they are, row by row.
    """

    nemo: str
    hf: tuple[str, ...]
    shape: Callable[[GptOssConfig], tuple[int, ...]]
    hf_shapes: Callable[[GptOssConfig], tuple[tuple[int, ...], ...]]
    per_layer: bool = True
    per_expert: bool = False
    to_nemo: ToNemo = keep
    to_hf: ToHf = keep_all

    def leading(self, config: GptOssConfig) -> tuple[int, ...]:
        """The stacked axes of the Megatron tensor: (), (L,) or (L, E)."""
        layers = (config.num_layers,) if self.per_layer else ()
        return (*layers, config.num_experts) if self.per_expert else layers

    def rows_in_nemo(self, config: GptOssConfig) -> np.ndarray:
        """int64 (rows,): the row of the one Hugging Face tensor that each row of the Megatron tensor is."""
        return self.to_nemo([torch.arange(self.shape(config)[0])], config).numpy()

    def rows_in_hf(self, config: GptOssConfig) -> np.ndarray:
        """int64 (rows,): the row of the Megatron tensor that each row of the one Hugging Face tensor is."""
        (rows,) = self.to_hf(torch.arange(self.shape(config)[0]), config)
        return rows.numpy()

    @property
    def is_expert_matrix(self) -> bool:
        """Whether Hugging Face stores it as MXFP4, or transposed."""
        return self.per_expert and self.nemo.endswith(".weight")

    def stored(self, config: GptOssConfig, *, packed: bool) -> dict[str, tuple[int, ...]]:
        """Key and shape of what a NeMo checkpoint holds for it.

        Args:
            packed: whether expert matrices are MXFP4: blocks (L, E, out, in/32, 16) and scales (L, E, out, in/32).
        """
        shape = (*self.leading(config), *self.shape(config))
        if not (packed and self.is_expert_matrix):
            return {self.nemo: shape}
        scales = (*shape[:-1], shape[-1] // BLOCK)
        return {self.nemo + BLOCKS: (*scales, BLOCK // 2), self.nemo + SCALES: scales}


@dataclass(frozen=True)
class Place:
    """The unit of a conversion: one layer's tensor, one expert's, or some rows of a tensor without layers.

    Attributes:
        leading: indices of the stacked axes: (), (layer,) or (layer, expert).
        rows: first and last + 1 of the rows; None for all.
    """

    leading: tuple[int, ...] = ()
    rows: tuple[int, int] | None = None

    @property
    def layer(self) -> int:
        return self.leading[0] if self.leading else 0

    @property
    def expert(self) -> int | None:
        return self.leading[1] if len(self.leading) > 1 else None


# Rows of the embedding that are handled at once: of gpt-oss as many bytes as the larger matrix of an expert.
_ROWS = 5760


def places(entry: Entry, config: GptOssConfig, layer: int) -> Iterator[Place]:
    """The parts of one layer's tensor in storage order; `layer` is 0 where there are no layers."""
    if entry.per_expert:
        yield from (Place((layer, expert)) for expert in range(config.num_experts))
    elif entry.per_layer:
        yield Place((layer,))
    else:
        rows = entry.shape(config)[0]
        yield from (Place(rows=(start, min(start + _ROWS, rows))) for start in range(0, rows, _ROWS))


def layers_of(config: GptOssConfig) -> Iterator[tuple[Entry, int]]:
    """Every tensor of a model, layer by layer, those without layers at the end."""
    for layer in range(config.num_layers):
        yield from ((entry, layer) for entry in TABLE if entry.per_layer)
    yield from ((entry, 0) for entry in TABLE if not entry.per_layer)


def _same(nemo: str, hf: str, shape: Callable[[GptOssConfig], tuple[int, ...]], *, per_layer: bool = True) -> Entry:
    return Entry(nemo, (hf,), shape, lambda c: (shape(c),), per_layer=per_layer)


_LAYER, _HF = "decoder.layers.", "model.layers.{layer}."
_EXPERTS, _HF_EXPERTS = _LAYER + "mlp.experts.experts.", _HF + "mlp.experts."
_QKV = tuple(_HF + f"self_attn.{part}_proj" for part in "qkv")


def _qkv_rows(config: GptOssConfig) -> tuple[int, int, int]:
    return config.attention_size, config.num_groups * config.head_dim, config.num_groups * config.head_dim


TABLE: tuple[Entry, ...] = (
    _same(
        "embedding.word_embeddings.weight",
        "model.embed_tokens.weight",
        lambda c: (c.vocab_size, c.hidden_size),
        per_layer=False,
    ),
    _same("output_layer.weight", "lm_head.weight", lambda c: (c.vocab_size, c.hidden_size), per_layer=False),
    _same("decoder.final_layernorm.weight", "model.norm.weight", lambda c: (c.hidden_size,), per_layer=False),
    _same(
        _LAYER + "self_attention.linear_qkv.layer_norm_weight",
        _HF + "input_layernorm.weight",
        lambda c: (c.hidden_size,),
    ),
    Entry(
        _LAYER + "self_attention.linear_qkv.weight",
        tuple(f"{name}.weight" for name in _QKV),
        lambda c: (c.qkv_size, c.hidden_size),
        lambda c: tuple((rows, c.hidden_size) for rows in _qkv_rows(c)),
        to_nemo=fuse_qkv,
        to_hf=split_qkv,
    ),
    Entry(
        _LAYER + "self_attention.linear_qkv.bias",
        tuple(f"{name}.bias" for name in _QKV),
        lambda c: (c.qkv_size,),
        lambda c: tuple((rows,) for rows in _qkv_rows(c)),
        to_nemo=fuse_qkv,
        to_hf=split_qkv,
    ),
    _same(
        _LAYER + "self_attention.linear_proj.weight",
        _HF + "self_attn.o_proj.weight",
        lambda c: (c.hidden_size, c.attention_size),
    ),
    _same(_LAYER + "self_attention.linear_proj.bias", _HF + "self_attn.o_proj.bias", lambda c: (c.hidden_size,)),
    _same(_LAYER + "self_attention.core_attention.softmax_offset", _HF + "self_attn.sinks", lambda c: (c.num_heads,)),
    _same(_LAYER + "pre_mlp_layernorm.weight", _HF + "post_attention_layernorm.weight", lambda c: (c.hidden_size,)),
    _same(_LAYER + "mlp.router.weight", _HF + "mlp.router.weight", lambda c: (c.num_experts, c.hidden_size)),
    _same(_LAYER + "mlp.router.bias", _HF + "mlp.router.bias", lambda c: (c.num_experts,)),
    Entry(
        _EXPERTS + "linear_fc1.weight",
        (_HF_EXPERTS + "gate_up_proj",),
        lambda c: (2 * c.ffn_size, c.hidden_size),
        lambda c: ((2 * c.ffn_size, c.hidden_size),),
        per_expert=True,
        to_nemo=deinterleave,
        to_hf=interleave,
    ),
    Entry(
        _EXPERTS + "linear_fc1.bias",
        (_HF_EXPERTS + "gate_up_proj_bias",),
        lambda c: (2 * c.ffn_size,),
        lambda c: ((2 * c.ffn_size,),),
        per_expert=True,
        to_nemo=deinterleave,
        to_hf=interleave,
    ),
    Entry(
        _EXPERTS + "linear_fc2.weight",
        (_HF_EXPERTS + "down_proj",),
        lambda c: (c.hidden_size, c.ffn_size),
        lambda c: ((c.hidden_size, c.ffn_size),),
        per_expert=True,
    ),
    Entry(
        _EXPERTS + "linear_fc2.bias",
        (_HF_EXPERTS + "down_proj_bias",),
        lambda c: (c.hidden_size,),
        lambda c: ((c.hidden_size,),),
        per_expert=True,
    ),
)
