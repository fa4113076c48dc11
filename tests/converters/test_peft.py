"""Adapters to PEFT and back, of any layout, and those that cannot; test_foreign_peft.py has PEFT load them."""

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
from converters.peft.expert_layouts import ExpertLayout, layout_by_records
from converters.peft.export_peft import export_adapter
from converters.peft.import_peft import import_adapter
from converters.peft.lora_settings import SETTINGS
from converters.storage.weights_reader import WeightsReader
from launch.commands.convert import app
from modeling.hf_config import GptOssConfig
from tests.converters.adapters import ALPHA, RANK, write_adapter
from tests.converters.conftest import SIZES

KINDS: dict[str, dict[str, Any]] = {
    "everything": {},
    "attention": {"expert_layers": []},
    "experts": {"attention": False},
    "experts of some layers": {"expert_layers": [0, 2]},
    "with the router": {"router": True},
}


def damaged(peft: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    weights = peft / "adapter_model.safetensors"
    settings, tensors = json.loads((peft / SETTINGS).read_text()), load_file(weights)
    change(settings, tensors)
    (peft / SETTINGS).write_text(json.dumps(settings))
    with safe_open(weights, framework="pt") as file:
        said = file.metadata()
    save_file({name: value.clone() for name, value in tensors.items()}, weights, metadata=said)
    return peft


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


@pytest.mark.parametrize("layout", ExpertLayout)
def test_either_layout_comes_back_though_no_shape_tells(
    layout: ExpertLayout, tmp_path: Path, model: Callable[..., Path]
) -> None:
    """Of square matrices the file itself says what they are, also where nothing else came along."""
    from converters.import_hf import import_checkpoint

    base = import_checkpoint(model(tmp_path / "hf", SIZES | {"intermediate_size": 64}), tmp_path / "nemo")
    adapter = write_adapter(tmp_path / "adapter", base, attention=False)
    peft = export_adapter(adapter, tmp_path / "peft", layout=layout)

    def only_down(settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        settings["target_parameters"] = ["mlp.experts.down_proj"]
        for name in [name for name in tensors if ".base_layer." in name]:
            del tensors[name]

    damaged(peft, only_down)
    (peft / "manifest.json").unlink()
    back = import_adapter(peft, tmp_path / "back", base=base)
    key = "decoder.layers.mlp.experts.experts.linear_fc2" + LINEAR_OUT
    a, b = (WeightsReader(folder / "weights").read(key) for folder in (adapter, back))
    assert torch.equal(a, b)
    assert layout.words in (peft / "README.md").read_text()


RECORDS: dict[str, tuple[dict[str, Any], dict[str, str], ExpertLayout | None]] = {
    "PEFT 0.18": ({"peft_version": "0.18.1"}, {}, ExpertLayout.transformers5),
    "PEFT 0.17 by its card": ({}, {"README.md": "### Framework versions\n\n- PEFT 0.17.1"}, ExpertLayout.transformers5),
    "PEFT 0.21 alone": ({"peft_version": "0.21.2"}, {"README.md": "- PEFT 0.21.2"}, None),
    "with transformers 4": (
        {"peft_version": "0.19.1"},
        {"README.md": "- PEFT 0.19.1\n- Transformers: 4.57.1\n"},
        ExpertLayout.transformers4,
    ),
    "with transformers 5": (
        {"peft_version": "0.21.3.dev0@a1b2c3"},
        {"config.json": '{"transformers_version": "5.2.0"}'},
        ExpertLayout.transformers5,
    ),
    "with the tokenizer of transformers 5": (
        {"peft_version": "0.20.0"},
        {"tokenizer_config.json": '{"tokenizer_class": "TokenizersBackend"}'},
        ExpertLayout.transformers5,
    ),
    "PEFT 0.19.0, which asks the other way round": (
        {"peft_version": "0.19.0"},
        {"README.md": "- Transformers 5.0.0"},
        ExpertLayout.transformers4,
    ),
    "this package's former exports": (
        {},
        {"manifest.json": '{"kind": "peft-adapter", "fingerprint": "", "inputs": {}, "files": {}}'},
        ExpertLayout.transformers4,
    ),
    "nothing": ({}, {}, None),
}


@pytest.mark.parametrize("records", RECORDS)
def test_recorded_versions_tell_the_layout(records: str, tmp_path: Path) -> None:
    settings, files, layout = RECORDS[records]
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert layout_by_records(tmp_path, settings, {"format": "pt"}) is layout


def test_one_linear_layer_an_expert_comes_as_one_adapter(imported: Path, tmp_path: Path) -> None:
    """As Unsloth names them; the values are those of PEFT's own two matrices."""
    adapter = write_adapter(tmp_path / "adapter", imported, attention=False, expert_layers=[0, 2])
    peft = export_adapter(adapter, tmp_path / "peft")

    def apart(settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        settings |= {"target_parameters": None, "target_modules": "all-linear"}
        for name in list(tensors):
            parameter = "gate_up_projs" if ".base_layer." in name else "down_projs"
            place, side = name.replace(".base_layer", "").split(".lora_")
            whole = tensors.pop(name)
            parts = whole.chunk(4) if side.startswith("A") else [whole[:, expert::4] for expert in range(4)]
            tensors |= {f"{place}.{parameter}.{expert}.lora_{side}": part for expert, part in enumerate(parts)}

    back = import_adapter(damaged(peft, apart), tmp_path / "back", base=imported)
    a, b = (WeightsReader(folder / "weights") for folder in (adapter, back))
    assert a.tensors.keys() == b.tensors.keys()
    for key in a.tensors:
        assert torch.equal(a.read(key), b.read(key)), key


def test_settings_name_the_base_and_what_is_adapted(imported: Path, mxfp4_toy: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", imported, expert_layers=[2], router=True)
    settings = json.loads((export_adapter(adapter, tmp_path / "peft") / SETTINGS).read_text())
    assert settings["base_model_name_or_path"] == str(mxfp4_toy)
    assert settings["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert settings["target_parameters"] == ["layers.2.mlp.experts.gate_up_proj", "layers.2.mlp.experts.down_proj"]
    assert settings["modules_to_save"] == ["router"]
    assert isinstance(settings["lora_alpha"], int), "vLLM's field is one"
    assert (settings["r"], settings["lora_alpha"]) == (RANK, ALPHA)


Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
GATE_UP = "base_model.model.model.layers.1.mlp.experts.base_layer.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s, t: s.update(use_dora=True), r"DoRA \(use_dora\).*merge_and_unload"),
        (lambda s, t: s.update(init_lora_weights="pissa_niter_4"), "'pissa_niter_4': .* path_initial_model_for_weight"),
        (lambda s, t: s.update(init_lora_weights="olora"), "'olora': its factors belong to a base that"),
        (lambda s, t: s.update(init_lora_weights="loftq"), "'loftq': .* merge it into that base with PEFT"),
        (lambda s, t: s.update(bias="all"), "trains biases"),
        (lambda s, t: s.update(peft_type="IA3"), "an adapter of type IA3"),
        (lambda s, t: s.update(r=0), "adapter_config.json is missing or damaged"),
        (lambda s, t: s.update(rank_pattern={"(": 4}), "adapter_config.json is missing or damaged"),
        (lambda s, t: s.update(lora_alpha=float("inf")), "adapter_config.json is missing or damaged"),
        (lambda s, t: t.update({Q: t[Q][:, :8]}), "has shape \\(6, 8\\), expected \\(6, 64\\)"),
        (lambda s, t: t.update({"base_model.model.lm_head.lora_A.weight": t[Q]}), "holds .*lm_head.lora_A.*merge_and"),
        (lambda s, t: t.update({"base_model.model.lm_head.weight": t[Q]}), "holds .*lm_head.weight.*merge_and_unload"),
        (lambda s, t: t.pop(Q.replace("lora_A", "lora_B")), "lacks the tensor .*lora_B"),
        (lambda s, t: t.pop(GATE_UP.replace("lora_A", "lora_B")), "lacks the tensor .*lora_B"),
        (lambda s, t: t.update({GATE_UP: t[GATE_UP][1:]}), "has shape \\(23, 64\\), expected \\(24, 64\\)"),
        (lambda s, t: t.clear(), "holds no LoRA weights"),
    ],
)
def test_what_nemo_cannot_hold_is_an_error(
    change: Callable[..., Any], says: str, imported: Path, tmp_path: Path
) -> None:
    peft = export_adapter(write_adapter(tmp_path / "adapter", imported), tmp_path / "peft")
    with pytest.raises(CheckpointError, match=says):
        import_adapter(damaged(peft, change), tmp_path / "back", base=imported)
    assert not (tmp_path / "back").exists()


def test_a_pickle_is_not_opened(imported: Path, tmp_path: Path) -> None:
    peft = export_adapter(write_adapter(tmp_path / "adapter", imported), tmp_path / "peft")
    (peft / "adapter_model.safetensors").rename(peft / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model.bin is a pickle, which can run code"):
        import_adapter(peft, tmp_path / "back", base=imported)


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
