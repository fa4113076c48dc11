from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigurationError
from modeling.hf_config import GptOssConfig, megatron_arguments

# gpt-oss-20b's own config.json, in the fields that decide a shape or a number
GPT_OSS_20B: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "head_dim": 64,
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}


def test_megatron_arguments_of_the_20b() -> None:
    arguments = megatron_arguments(GptOssConfig.from_dict(GPT_OSS_20B))
    assert arguments["window_size"] == (127, 0)
    assert arguments["window_attn_skip_freq"] == [1, 0] * 12
    assert (arguments["yarn_mscale"], arguments["yarn_mscale_all_dim"]) == (1.0, 0.0)
    assert arguments["yarn_correction_range_round_to_int"] is False
    assert arguments["yarn_original_max_position_embeddings"] == 4096
    assert (arguments["num_moe_experts"], arguments["moe_router_topk"], arguments["kv_channels"]) == (32, 4, 64)
    json.dumps(arguments)


def test_fused_sizes() -> None:
    config = GptOssConfig.from_dict(GPT_OSS_20B)
    assert (config.qkv_size, config.attention_size) == (5120, 4096)


def test_rope_parameters_of_newer_transformers() -> None:
    newer = {k: v for k, v in GPT_OSS_20B.items() if k not in ("rope_scaling", "rope_theta")}
    newer["rope_parameters"] = {**GPT_OSS_20B["rope_scaling"], "rope_theta": 150000.0}
    old, new = GptOssConfig.from_dict(GPT_OSS_20B), GptOssConfig.from_dict(newer)
    assert megatron_arguments(old) == megatron_arguments(new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"num_key_value_heads": 7}, "do not divide into 7 groups"),
        ({"num_experts_per_tok": 33}, "33 experts a token of 32"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types"),
        ({"hidden_size": 0}, "below 1"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"hidden_size": None}, "wrong kind"),
        ({"hidden_size": "wide"}, "wrong kind"),
        ({"rope_scaling": {**GPT_OSS_20B["rope_scaling"], "rope_type": "linear"}}, "rope_type is 'linear'"),
    ],
)
def test_impossible_configs_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        GptOssConfig.from_dict(GPT_OSS_20B | change)


@pytest.mark.parametrize(
    "field",
    sorted(
        set(GPT_OSS_20B)
        - {
            "architectures",
            "initial_context_length",
            "layer_types",
            "swiglu_limit",
            "tie_word_embeddings",
            "model_type",
        }
    ),
)
def test_missing_field_is_named(field: str) -> None:
    with pytest.raises(ConfigurationError, match=field):
        GptOssConfig.from_dict({k: v for k, v in GPT_OSS_20B.items() if k != field})


def test_file_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.json is missing"):
        GptOssConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be read as JSON"):
        GptOssConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="no JSON object"):
        GptOssConfig.from_file(tmp_path)
