"""OpenAI's own layout (`original/`), written out here name by name, imports to the same as Hugging Face's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from common.errors import CheckpointError, ConfigurationError
from converters.export_hf import export_checkpoint
from converters.import_hf import import_checkpoint
from converters.verify import compare_checkpoints

Tensors = Callable[[Path], dict[str, torch.Tensor]]
CONFIG: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_experts": 4,
    "experts_per_token": 2,
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "swiglu_limit": 7.0,
    "head_dim": 16,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "sliding_window": 8,
    "initial_context_length": 4096,
    "rope_theta": 150000,
    "rope_scaling_factor": 32.0,
    "rope_ntk_alpha": 1,
    "rope_ntk_beta": 32,
}


def write_original(folder: Path, hf: dict[str, torch.Tensor], *, plain: bool = False) -> Path:
    """The tensors of a Hugging Face checkpoint under OpenAI's names."""
    found = {
        "embedding.weight": hf["model.embed_tokens.weight"],
        "unembedding.weight": hf["lm_head.weight"],
        "norm.scale": hf["model.norm.weight"],
    }
    for i in range(3):
        a, b = f"model.layers.{i}.", f"block.{i}."
        found[b + "attn.norm.scale"] = hf[a + "input_layernorm.weight"]
        found[b + "attn.sinks"] = hf[a + "self_attn.sinks"]
        for kind in ("weight", "bias"):
            found[b + f"attn.qkv.{kind}"] = torch.cat([hf[a + f"self_attn.{x}_proj.{kind}"] for x in "qkv"])
            found[b + f"attn.out.{kind}"] = hf[a + f"self_attn.o_proj.{kind}"]
            found[b + f"mlp.gate.{kind}"] = hf[a + f"mlp.router.{kind}"]
        found[b + "mlp.norm.scale"] = hf[a + "post_attention_layernorm.weight"]
        for theirs, ours in (("mlp1", "gate_up_proj"), ("mlp2", "down_proj")):
            found[b + f"mlp.{theirs}_bias"] = hf[a + f"mlp.experts.{ours}_bias"]
            if plain:
                found[b + f"mlp.{theirs}_weight"] = hf[a + f"mlp.experts.{ours}"].transpose(1, 2)
            else:
                for part in ("blocks", "scales"):
                    found[b + f"mlp.{theirs}_weight.{part}"] = hf[a + f"mlp.experts.{ours}_{part}"]
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in found.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def original(mxfp4_toy: Path, tensors: Tensors, tmp_path: Path) -> Path:
    """`original/` of a Hub repository: the tokenizer is in the folder above."""
    folder = write_original(tmp_path / "repository" / "original", tensors(mxfp4_toy))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder.parent / name).write_bytes((mxfp4_toy / name).read_bytes())
    return folder


def test_it_imports_to_the_same_checkpoint(original: Path, imported: Path, tmp_path: Path) -> None:
    report = compare_checkpoints(import_checkpoint(original, tmp_path / "nemo"), imported)
    assert report.same
    assert report.equal == 42


def test_it_exports_to_hugging_faces_layout(
    original: Path, mxfp4_toy: Path, tmp_path: Path, tensors: Tensors, same: Callable[..., bool]
) -> None:
    from transformers import AutoConfig

    out = export_checkpoint(import_checkpoint(original, tmp_path / "nemo"), tmp_path / "out", weights="mxfp4")
    assert same(tensors(out), tensors(mxfp4_toy))
    found, expected = AutoConfig.from_pretrained(out), AutoConfig.from_pretrained(mxfp4_toy)
    for name in ("rope_scaling", "rope_theta", "layer_types", "sliding_window", "num_local_experts", "head_dim"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.quantization_config["quant_method"] == "mxfp4"


def test_plain_experts_are_rows_of_the_output(bf16_toy: Path, tensors: Tensors, imported: Path, tmp_path: Path) -> None:
    folder = write_original(tmp_path / "original", tensors(bf16_toy), plain=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((bf16_toy / name).read_bytes())
    assert compare_checkpoints(import_checkpoint(folder, tmp_path / "nemo"), imported).same


def test_a_missing_tokenizer_or_field_is_told(original: Path, tmp_path: Path) -> None:
    (original.parent / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks its tokenizer \(tokenizer.json\)"):
        import_checkpoint(original, tmp_path / "nemo")
    (original / "config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != "head_dim"}))
    with pytest.raises(ConfigurationError, match="has no field 'head_dim'"):
        import_checkpoint(original, tmp_path / "nemo")
