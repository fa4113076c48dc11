"""Megatron-Bridge's run_config.yaml: written for a gpt-oss, and read back as Hugging Face's config.json.

Source: megatron-bridge 0.6.2, models/gpt_oss/gpt_oss_bridge.py (provider_bridge), models/gpt_provider.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from common.errors import CheckpointError, ConfigurationError
from common.foreign import file_in
from common.yaml_text import parse_yaml
from modeling.hf_config import FULL, SLIDING, GptOssConfig, megatron_arguments, published_config

LORA = "megatron.bridge.peft.lora.LoRA"
# Of every gpt-oss, as provider_bridge sets them
_GPT_OSS = {
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "glu_linear_offset": 1.0,
    "activation_func": {"_target_": "megatron.core.fusions.fused_bias_geglu.quick_gelu", "_call_": False},
    "softmax_type": "learnable",
    "position_embedding_type": "yarn",
    "rotary_percent": 1.0,
    "add_bias_linear": True,
    "add_qkv_bias": False,
    "share_embeddings_and_output_weights": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "moe_router_pre_softmax": False,
    "moe_router_load_balancing_type": "none",
    "moe_grouped_gemm": True,
    "moe_token_dispatcher_type": "alltoall",
    "moe_permute_fusion": True,
    # provider_bridge sets it; megatron-core 0.19.2 (fused_bias_geglu.py, weighted_bias_quick_geglu_impl) then clamps
    # before the bias is added
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
}
# Megatron's name of a field of config.json whose value is the same
_SAME = {
    "num_hidden_layers": "num_layers",
    "num_local_experts": "num_moe_experts",
    "num_experts_per_tok": "moe_router_topk",
    "hidden_size": "hidden_size",
    "intermediate_size": "moe_ffn_hidden_size",
    "vocab_size": "vocab_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "rms_norm_eps": "layernorm_epsilon",
    "rope_theta": "rotary_base",
    "swiglu_limit": "activation_func_clamp_value",
}
_YARN = {
    "factor": "yarn_rotary_scaling_factor",
    "original_max_position_embeddings": "yarn_original_max_position_embeddings",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
    "truncate": "yarn_correction_range_round_to_int",
}


def write_run_config(
    file: Path,
    config: GptOssConfig,
    *,
    tokenizer: str,
    hub_id: str | None = None,
    fp32: bool = False,
    peft: Mapping[str, Any] | None = None,
    base: str | None = None,
) -> None:
    """Write what Megatron-Bridge builds the model, its tokenizer and its adapter from.

    Args:
        tokenizer: Hub id or folder.
        hub_id: of the model that this one was made from.
        fp32: whether the weights are; else they are bf16.
        peft: of an adapter, the arguments of `LORA`; `base` is then the checkpoint that it belongs to.
    """
    yarn = {"yarn_mscale": None, "yarn_mscale_all_dim": None}  # "as transformers has it", since megatron-core 0.16
    model = megatron_arguments(config) | _GPT_OSS | yarn
    model |= {
        "_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider",
        "window_size": [*megatron_arguments(config)["window_size"]],
        "seq_length": config.max_positions,
        "hf_model_id": hub_id,
        "bf16": not fp32,
        "fp16": False,
        "params_dtype": {"_target_": f"torch.{'float32' if fp32 else 'bfloat16'}", "_call_": False},
    }
    content = {
        "model": model,
        "tokenizer": {
            "_target_": "megatron.bridge.training.tokenizers.config.TokenizerConfig",
            "tokenizer_type": "HuggingFaceTokenizer",
            "tokenizer_model": tokenizer,
        },
        "checkpoint": {
            "_target_": "megatron.bridge.training.config.CheckpointConfig",
            "save_optim": False,
            "save_rng": False,
            "fully_parallel_save": True,
            "pretrained_checkpoint": base,
        },
        "peft": {"_target_": LORA, **peft} if peft else None,
    }
    file.write_text(yaml.safe_dump(content))


def read_run_config(file: Path) -> dict[str, Any]:
    """The run config, which is data: nothing that it names is imported.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        content = parse_yaml(file_in(file.parent, file.name).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, ConfigurationError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is missing or damaged: get the checkpoint again, or name its model with --like.")
    return content


def hf_config_of(file: Path) -> dict[str, Any]:
    """config.json of the model that a run config describes; what that leaves open is as in the published gpt-oss.

    Raises:
        CheckpointError: it is missing, damaged, lacks a field, or describes no gpt-oss.
    """
    model = read_run_config(file).get("model")
    # a model's configuration of megatron.training (GPTModelConfig) has the layers' fields in one of its own
    model = {**model, **(model.get("transformer") or {})} if isinstance(model, dict) else {}
    if model.get("softmax_type") != "learnable" or model.get("position_embedding_type", "yarn") != "yarn":
        raise CheckpointError(
            f"{file} describes no gpt-oss, of which the attention has sinks and YaRN: name another folder."
        )
    raw = published_config()
    published_tokens = model.get("vocab_size") == raw["vocab_size"]
    for name in ("quantization_config", *(() if published_tokens else ("eos_token_id", "pad_token_id"))):
        del raw[name]
    try:
        raw |= {name: model[field] for name, field in _SAME.items()}
        raw["rope_scaling"] = {"rope_type": "yarn"} | {name: model[field] for name, field in _YARN.items()}
        raw["initial_context_length"] = int(raw["rope_scaling"]["original_max_position_embeddings"])
        # seq_length is that of the training
        raw["max_position_embeddings"] = int(raw["initial_context_length"] * raw["rope_scaling"]["factor"])
        raw["experts_per_token"] = raw["num_experts_per_tok"]
        raw["sliding_window"] = int(model["window_size"][0]) + 1  # Megatron counts the tokens before a token
        raw["layer_types"] = _layer_types(model.get("window_attn_skip_freq"), int(model["num_layers"]))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        lacking = error.args[0] if isinstance(error, KeyError) else "window_size or window_attn_skip_freq"
        raise CheckpointError(
            f"{file} says nothing usable of {lacking}: name the model's folder with --like."
        ) from None
    return raw | {"dtype": "bfloat16" if model.get("bf16") else "float32"}


def _layer_types(frequency: Any, layers: int) -> list[str]:
    """Source: megatron-core 0.19.2, transformer/utils.py, is_layer_window_attention."""
    if isinstance(frequency, list):
        return [SLIDING if sliding else FULL for sliding in frequency]
    return [FULL if frequency and (layer + 1) % int(frequency) == 0 else SLIDING for layer in range(layers)]
