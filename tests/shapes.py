"""Toy shapes in which every width is a number of its own, so that no mistaken axis fits where it does not belong."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

PUBLISHED: dict[str, Any] = {
    "model_type": "gpt_oss",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000,
    "rope_scaling": {
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "rope_type": "yarn",
    },
}
"""What the config.json of both published models says beside the sizes."""


def lopsided(sizes: Mapping[str, Any], alike: tuple[str, str] | None = None) -> dict[str, Any]:
    """The sizes, in the fields of config.json, of which no two widths agree.

    Args:
        alike: the two widths that agree on purpose, as hidden and FFN do in the published models.
    Raises:
        AssertionError: names the widths that agree.
    """
    heads, groups, head_dim = (int(sizes[name]) for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    widths = {
        "layers": int(sizes["num_hidden_layers"]),
        "experts": int(sizes["num_local_experts"]),
        "hidden": int(sizes["hidden_size"]),
        "FFN": int(sizes["intermediate_size"]),
        "2·FFN": 2 * int(sizes["intermediate_size"]),
        "heads·head_dim": heads * head_dim,
        "qkv rows": (heads + 2 * groups) * head_dim,
        "vocabulary": int(sizes["vocab_size"]),
    }
    agree = [pair for pair in combinations(widths, 2) if widths[pair[0]] == widths[pair[1]]]
    assert agree == ([alike] if alike else []), ", ".join(f"{a} = {b} = {widths[a]}" for a, b in agree)
    return dict(sizes)
