"""OpenAI's own checkpoint layout (`original/` on the Hub), seen through Hugging Face's names.

Source: openai/gpt-oss, gpt_oss/torch/{model,weights}.py. Experts are stored as Hugging Face stores them, MXFP4 rows of
the output dimension with gate and up interleaved; query, key and value rows stand one after the other in one tensor.
"""

from __future__ import annotations

import re
from typing import Any

from modeling.hf_config import FULL, MOST_LAYERS, SLIDING, GptOssConfig, published_config, size_in

MARK = "unembedding.weight"
"""A tensor that only this layout has."""

_TOP = {
    "model.embed_tokens.weight": "embedding.weight",
    "lm_head.weight": "unembedding.weight",
    "model.norm.weight": "norm.scale",
}
_LAYER = {
    "input_layernorm.weight": "attn.norm.scale",
    "self_attn.sinks": "attn.sinks",
    "self_attn.o_proj.weight": "attn.out.weight",
    "self_attn.o_proj.bias": "attn.out.bias",
    "post_attention_layernorm.weight": "mlp.norm.scale",
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.router.bias": "mlp.gate.bias",
    "mlp.experts.gate_up_proj": "mlp.mlp1_weight",
    "mlp.experts.gate_up_proj_blocks": "mlp.mlp1_weight.blocks",
    "mlp.experts.gate_up_proj_scales": "mlp.mlp1_weight.scales",
    "mlp.experts.gate_up_proj_bias": "mlp.mlp1_bias",
    "mlp.experts.down_proj": "mlp.mlp2_weight",
    "mlp.experts.down_proj_blocks": "mlp.mlp2_weight.blocks",
    "mlp.experts.down_proj_scales": "mlp.mlp2_weight.scales",
    "mlp.experts.down_proj_bias": "mlp.mlp2_bias",
}


def stored_at(name: str, config: GptOssConfig) -> tuple[str, tuple[int, int] | None]:
    """The tensor that holds Hugging Face's `name`, and which of its rows do; None for all."""
    if name in _TOP:
        return _TOP[name], None
    layer, rest = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name).groups()  # type: ignore[union-attr]
    if rest in _LAYER:
        return f"block.{layer}.{_LAYER[rest]}", None
    part, kind = re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", rest).groups()  # type: ignore[union-attr]
    query, key = config.attention_size, config.num_groups * config.head_dim
    rows = {"q": (0, query), "k": (query, query + key), "v": (query + key, query + 2 * key)}
    return f"block.{layer}.attn.qkv.{kind}", rows[part]


def to_hf_config(raw: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's config.json in Hugging Face's fields; fields that it lacks are the published ones.

    Raises:
        KeyError: a field is missing. ValueError, TypeError, OverflowError: one is of another kind.
    """
    layers, published = size_in(raw, "num_hidden_layers", MOST_LAYERS), published_config()
    del published["quantization_config"]
    same = (
        "experts_per_token", "head_dim", "hidden_size", "initial_context_length", "intermediate_size",
        "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rope_theta", "sliding_window", "vocab_size",
    )  # fmt: skip
    return published | {
        **{name: raw[name] for name in same},
        "layer_types": [(SLIDING, FULL)[i % 2] for i in range(layers)],
        "max_position_embeddings": int(raw["initial_context_length"] * raw["rope_scaling_factor"]),
        "num_experts_per_tok": raw["experts_per_token"],
        "num_local_experts": raw["num_experts"],
        "rope_scaling": published["rope_scaling"]
        | {
            "beta_fast": float(raw["rope_ntk_beta"]),
            "beta_slow": float(raw["rope_ntk_alpha"]),
            "factor": float(raw["rope_scaling_factor"]),
            "original_max_position_embeddings": raw["initial_context_length"],
        },
        "swiglu_limit": raw.get("swiglu_limit", published["swiglu_limit"]),
    }


QUANTIZATION: dict[str, Any] = published_config()["quantization_config"]
"""Of config.json, where the experts are MXFP4."""
