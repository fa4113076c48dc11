"""Megatron-core against transformers: the same config.json and weights must give the same logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import GptOssConfig as HfConfig
from transformers import GptOssForCausalLM

from modeling import inference
from modeling.hf_config import GptOssConfig
from tests.shapes import lopsided

SHAPES = {
    # name: layers, experts, top-k, hidden, ffn, heads, groups, head_dim, window, YaRN original length, tokens
    "lopsided": (3, 5, 2, 64, 96, 10, 2, 16, 8, 4096, 64),
    "square": (2, 4, 4, 96, 96, 5, 1, 32, 8, 4096, 48),
    "ungrouped": (4, 8, 4, 32, 64, 8, 8, 12, 16, 4096, 70),
    "past-yarn": (3, 4, 2, 64, 48, 4, 2, 32, 8, 64, 200),
}


@pytest.fixture(scope="module", autouse=True)
def megatron():
    inference.initialize()
    yield
    inference.shutdown()


def hf_model(name: str) -> GptOssForCausalLM:
    layers, experts, top, hidden, ffn, heads, groups, head_dim, window, original, _ = SHAPES[name]
    config = HfConfig(
        num_hidden_layers=layers,
        num_local_experts=experts,
        num_experts_per_tok=top,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        sliding_window=window,
        vocab_size=176,
        max_position_embeddings=original * 32,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": original,
        },
        attn_implementation="eager",
    )
    lopsided(config.to_dict(), alike=("hidden", "FFN") if name == "square" else None)
    torch.manual_seed(len(name))
    model = GptOssForCausalLM(config).float().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(1.0, 0.1) if "norm" in key else parameter.normal_(0.0, 0.2)
    return model


def fill(model: torch.nn.Module, hf: GptOssForCausalLM, config: GptOssConfig) -> None:
    """Copy weights by a mapping written out here, independent of the one in converters."""
    source = hf.state_dict()
    target = dict(model.named_parameters())
    group = config.num_heads // config.num_groups

    def put(name: str, value: torch.Tensor) -> None:
        parameter = target.pop(name)
        assert parameter.shape == value.shape, name
        parameter.data.copy_(value)

    put("embedding.word_embeddings.weight", source["model.embed_tokens.weight"])
    put("decoder.final_layernorm.weight", source["model.norm.weight"])
    put("output_layer.weight", source["lm_head.weight"])
    for i in range(config.num_layers):
        a, b = f"model.layers.{i}.", f"decoder.layers.{i}."
        put(b + "input_layernorm.weight", source[a + "input_layernorm.weight"])
        put(b + "pre_mlp_layernorm.weight", source[a + "post_attention_layernorm.weight"])
        put(b + "self_attention.core_attention.softmax_offset", source[a + "self_attn.sinks"])
        for kind in ("weight", "bias"):
            q, k, v = (source[f"{a}self_attn.{x}_proj.{kind}"].split(config.head_dim) for x in "qkv")
            rows = [r for g in range(config.num_groups) for r in (*q[g * group : (g + 1) * group], k[g], v[g])]
            put(b + f"self_attention.linear_qkv.{kind}", torch.cat(rows))
            put(b + f"self_attention.linear_proj.{kind}", source[f"{a}self_attn.o_proj.{kind}"])
            put(b + f"mlp.router.{kind}", source[f"{a}mlp.router.{kind}"])
        fc1, fc2 = b + "mlp.experts.linear_fc1.", b + "mlp.experts.linear_fc2."
        fused = [source[a + "mlp.experts.gate_up_proj"][e].T for e in range(config.num_experts)]
        biases = list(source[a + "mlp.experts.gate_up_proj_bias"])
        put(fc1 + "weight", torch.stack([torch.cat([rows[::2], rows[1::2]]) for rows in fused]))
        put(fc1 + "bias", torch.stack([torch.cat([bias[::2], bias[1::2]]) for bias in biases]))
        put(fc2 + "weight", torch.stack([matrix.T for matrix in source[a + "mlp.experts.down_proj"]]))
        put(fc2 + "bias", source[a + "mlp.experts.down_proj_bias"])
    assert not target, f"not filled: {sorted(target)}"


def difference(name: str, **overrides: object) -> float:
    hf = hf_model(name)
    config = GptOssConfig.from_dict(hf.config.to_dict())
    model = inference.build_model(config, seq_length=256, dtype=torch.float32, **overrides)
    fill(model, hf, config)
    tokens = torch.randint(0, config.vocab_size, (2, SHAPES[name][-1]), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = hf(tokens).logits
    assert expected.std() > 0.5, "logits without spread would prove nothing"
    return (inference.logits(model, tokens) - expected).abs().max().item()


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_transformers(name: str, record_property: Callable[[str, object], None]) -> None:
    found = difference(name)
    record_property("logits", found)
    assert found <= 1e-4


@pytest.mark.parametrize(
    "stock",
    [{"window_size": (8, 0)}, {"yarn_mscale_all_dim": 1.0}, {"yarn_correction_range_round_to_int": True}],
    ids=["window one too wide", "YaRN without its factor", "YaRN ramp rounded"],
)
def test_upstream_defaults_would_be_seen(stock: dict[str, object]) -> None:
    """The parity test is no formality: NeMo's own values are off by far more than the tolerance."""
    assert difference("lopsided", **stock) > 1e-2


def test_logits_at_some_positions_are_those_of_all() -> None:
    config = GptOssConfig.from_dict(hf_model("lopsided").config.to_dict())
    model = inference.build_model(config, seq_length=256, dtype=torch.float32)
    fill(model, hf_model("lopsided"), config)
    tokens = torch.randint(0, config.vocab_size, (2, 21), generator=torch.Generator().manual_seed(7))
    positions = torch.tensor([[3, 20, 4], [0, 1, 2]])
    whole = inference.logits(model, tokens)
    torch.testing.assert_close(inference.logits(model, tokens, positions), whole[torch.arange(2)[:, None], positions])
