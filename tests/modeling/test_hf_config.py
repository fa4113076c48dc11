from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from common.errors import CheckpointError, ConfigurationError
from common.values import one_line
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
        ({"hidden_size": 0}, "not a whole number from 1"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
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


SIZES = [name for name, value in GPT_OSS_20B.items() if type(value) is int and "token" not in name]
SIZES = [name for name in SIZES if name not in ("initial_context_length", "rope_theta")]
NUMBERS = ["rms_norm_eps", "rope_theta", "swiglu_limit"]
ABSURD = (10**12, 10**400, 1e400, float("nan"), -1, 0, True, None, "24", "x" * 10**6, [24], {"a": 1})


@pytest.mark.parametrize("value", [*ABSURD, 24.0], ids=lambda value: one_line(repr(value), 12))
@pytest.mark.parametrize("field", SIZES)
def test_absurd_sizes_are_refused_at_once(field: str, value: Any) -> None:
    refused(GPT_OSS_20B | {field: value}, field)


@pytest.mark.parametrize("value", ABSURD[1:], ids=lambda value: one_line(repr(value), 12))
@pytest.mark.parametrize("field", NUMBERS)
def test_absurd_numbers_are_refused(field: str, value: Any) -> None:
    refused(GPT_OSS_20B | {field: value}, field)


@pytest.mark.parametrize("field", ["factor", "beta_fast", "beta_slow", "original_max_position_embeddings"])
def test_absurd_ropes_are_refused(field: str) -> None:
    for value in ABSURD[1:]:
        refused(GPT_OSS_20B | {"rope_scaling": GPT_OSS_20B["rope_scaling"] | {field: value}}, field)


@pytest.mark.parametrize("types", [[["a"]] * 24, [{}] * 24, "sliding_attention", 24, [None] * 24, {"a": 1}])
def test_layer_types_of_other_kinds(types: Any) -> None:
    refused(GPT_OSS_20B | {"layer_types": types}, "layer_types")


@pytest.mark.parametrize("rope", [[], "yarn", 3, [["factor", 32]]])
def test_a_rope_that_holds_no_fields(rope: Any) -> None:
    refused(GPT_OSS_20B | {"rope_scaling": rope}, "rope_scaling")


def refused(raw: dict[str, Any], field: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ConfigurationError, match=field) as error:
        GptOssConfig.from_dict(raw)
    assert len(str(error.value)) < 300
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, '{"num_hidden_layers": ' + "9" * 5_000 + "}"])
def test_json_that_no_parser_takes(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigurationError, match="cannot be read as JSON"):
        GptOssConfig.from_file(tmp_path)


def test_a_config_beside_a_private_one(tmp_path: Path) -> None:
    """A link in a folder that somebody made is not followed; a file that the caller names is."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (tmp_path / "mine.json").write_text(json.dumps(GPT_OSS_20B))
    (folder / "config.json").symlink_to(tmp_path / "mine.json")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        GptOssConfig.from_file(folder)
    assert GptOssConfig.from_file(folder / "config.json").num_layers == 24


def test_file_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.json is missing"):
        GptOssConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be read as JSON"):
        GptOssConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="no JSON object"):
        GptOssConfig.from_file(tmp_path)
