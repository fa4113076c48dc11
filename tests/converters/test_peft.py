"""Adapters to PEFT and back: loaded by PEFT itself, on shapes where no transposition can hide."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from common.errors import CheckpointError
from converters.lora import LINEAR_OUT, Adapter
from converters.nemo_folder import METADATA
from converters.peft import SETTINGS, export_adapter, import_adapter
from converters.storage.nemo_weights import WeightsReader
from launch.commands.convert import app
from modeling.hf_config import GptOssConfig
from tests.converters.adapters import ALPHA, RANK, write_adapter

KINDS: dict[str, dict[str, Any]] = {
    "everything": {},
    "attention": {"expert_layers": []},
    "experts": {"attention": False},
    "experts of some layers": {"expert_layers": [0, 2]},
    "with the router": {"router": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_what_the_merged_export_computes(
    kind: str, imported: Path, bf16_toy: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from converters.export_hf import export_checkpoint

    adapter = write_adapter(tmp_path / "adapter", imported, **KINDS[kind])
    tokens = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(0))

    def load(folder: Path) -> Any:
        options = {"attn_implementation": "eager", "dtype": torch.float32}
        return AutoModelForCausalLM.from_pretrained(folder, **options).eval()

    with torch.no_grad():
        untouched = load(bf16_toy)(tokens).logits
        merged = load(export_checkpoint(imported, tmp_path / "merged", adapter=adapter, weights="fp32"))(tokens).logits
        peft = PeftModel.from_pretrained(load(bf16_toy), str(export_adapter(adapter, tmp_path / "peft"))).eval()
        found = peft(tokens).logits
    assert (merged - untouched).abs().max() > 0.1, "an adapter without effect would prove nothing"
    assert (found - merged).abs().max() <= 1e-4
    missing = [name for name, p in peft.named_parameters() if "lora_B" in name and not p.any()]
    assert not missing, "PEFT leaves an adapter that it does not find at zero"


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_the_identity(kind: str, imported: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", imported, **KINDS[kind])
    back = import_adapter(export_adapter(adapter, tmp_path / "peft"), tmp_path / "back", base=imported)
    config = GptOssConfig.from_file(imported / "context" / "hf_config.json")
    a, b = Adapter.open(adapter, config), Adapter.open(back, config)
    assert (b.alpha, b.expert_layers) == (a.alpha, a.expert_layers)
    assert b.reader.tensors.keys() == a.reader.tensors.keys()
    for key in a.reader.tensors:
        assert b.reader.shape(key) == a.reader.shape(key)
        assert torch.equal(b.reader.read(key), a.reader.read(key))
    assert json.loads((back / "weights" / METADATA).read_text()) == {"model_ckpt_path": str(imported)}


def test_an_adapter_that_peft_trained_comes_back_to_nemo(imported: Path, bf16_toy: Path, tmp_path: Path) -> None:
    """The way back alone, from what PEFT itself saves, with the short names that people give."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from converters.export_hf import export_checkpoint

    base = AutoModelForCausalLM.from_pretrained(bf16_toy, attn_implementation="eager", dtype=torch.float32).eval()
    settings = LoraConfig(
        r=RANK,
        lora_alpha=8,
        target_modules=["o_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )
    peft = get_peft_model(base, settings)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 128, (2, 40), generator=generator)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        expected = peft(tokens).logits
    peft.save_pretrained(str(tmp_path / "peft"))
    adapter = import_adapter(tmp_path / "peft", tmp_path / "adapter", base=imported)
    out = export_checkpoint(imported, tmp_path / "out", adapter=adapter, weights="fp32")
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager").eval()(tokens).logits
    assert (found - expected).abs().max() <= 1e-4


def test_settings_name_the_base_and_what_is_adapted(imported: Path, mxfp4_toy: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", imported, expert_layers=[2], router=True)
    settings = json.loads((export_adapter(adapter, tmp_path / "peft") / SETTINGS).read_text())
    assert settings["base_model_name_or_path"] == str(mxfp4_toy)
    assert settings["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert settings["target_parameters"] == ["layers.2.mlp.experts.gate_up_proj", "layers.2.mlp.experts.down_proj"]
    assert settings["modules_to_save"] == ["router"]
    assert (settings["r"], settings["lora_alpha"]) == (RANK, ALPHA)


def damaged(peft: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    from safetensors.torch import load_file, save_file

    weights = peft / "adapter_model.safetensors"
    settings, tensors = json.loads((peft / SETTINGS).read_text()), load_file(weights)
    change(settings, tensors)
    (peft / SETTINGS).write_text(json.dumps(settings))
    save_file({name: value.clone() for name, value in tensors.items()}, weights)
    return peft


Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s, t: s.update(use_rslora=True), "sets use_rslora"),
        (lambda s, t: t.update({Q: t[Q] + 1}), "lora_A differs between .*q_proj"),
        (lambda s, t: t.update({Q: t[Q][:, :8]}), "has shape \\(6, 8\\), expected \\(6, 64\\)"),
        (lambda s, t: t.update({"base_model.model.lm_head.lora_A.weight": t[Q]}), "lm_head.lora_A"),
        (lambda s, t: [t.pop(n) for n in list(t) if "layers.1.self_attn.o_proj" in n], "in some layers only"),
        (lambda s, t: t.pop(Q.replace("lora_A", "lora_B")), "lacks the tensor .*lora_B"),
    ],
    ids=["rslora", "three lora_A", "shape", "lm_head", "some layers", "missing"],
)
def test_what_nemo_cannot_hold_is_an_error(
    change: Callable[..., Any], says: str, imported: Path, tmp_path: Path
) -> None:
    peft = export_adapter(write_adapter(tmp_path / "adapter", imported), tmp_path / "peft")
    with pytest.raises(CheckpointError, match=says):
        import_adapter(damaged(peft, change), tmp_path / "back", base=imported)
    assert not (tmp_path / "back").exists()


def test_the_adapter_of_another_model_is_an_error(imported: Path, tmp_path: Path, model: Callable[..., Path]) -> None:
    from converters.import_hf import import_checkpoint

    sizes = json.loads((imported / "context" / "hf_config.json").read_text()) | {"num_local_experts": 2}
    other = import_checkpoint(model(tmp_path / "hf", sizes), tmp_path / "other")
    adapter = write_adapter(tmp_path / "adapter", other)
    with pytest.raises(CheckpointError, match=r"linear_fc1.*has shape \(3, 2, 6, 64\), the model has \(3, 4, 6, 64\)"):
        export_adapter(adapter, tmp_path / "peft", base=imported)


def test_the_command_goes_both_ways(imported: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", imported)
    there = CliRunner().invoke(app, ["adapter", str(adapter), str(tmp_path / "peft")])
    assert there.exit_code == 0, there.output
    back = CliRunner().invoke(app, ["adapter", str(tmp_path / "peft"), str(tmp_path / "back"), "--base", str(imported)])
    assert back.exit_code == 0, back.output
    key = "decoder.layers.mlp.experts.experts.linear_fc1" + LINEAR_OUT
    a, b = (WeightsReader(tmp_path / name / "weights").read(key) for name in ("adapter", "back"))
    assert torch.equal(a, b)
