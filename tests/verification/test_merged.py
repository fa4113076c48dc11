"""Merged weights are W + (alpha / r) · B · A to half a step of their format, and a wrong one is seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.export_hf import export_checkpoint
from converters.import_hf import import_checkpoint
from converters.peft.export_peft import export_adapter
from tests.converters.adapters import write_adapter
from tests.converters.conftest import write_model
from verification.merged import worst_rounding


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hf`, an adapter on it in PEFT's form, `peft`, and the merged export, `export`."""
    folder = tmp_path_factory.mktemp("merged")
    import_checkpoint(write_model(folder / "hf"), folder / "nemo")
    adapter = write_adapter(folder / "adapter", folder / "nemo")
    export_adapter(adapter, folder / "peft")
    export_checkpoint(folder / "nemo", folder / "export", adapter=adapter, weights="mxfp4")
    return folder


def rounding(folder: Path) -> float:
    return worst_rounding(folder / "hf", folder / "peft", folder / "export")


def test_rounding_is_all_that_differs(folder: Path) -> None:
    assert 0.45 < rounding(folder) <= 0.5


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.k_proj.weight", "model.layers.2.mlp.experts.down_proj_blocks"]
)
def test_one_wrong_weight_is_seen(folder: Path, name: str) -> None:
    (file,) = (folder / "export").glob("*.safetensors")
    before = file.read_bytes()
    tensors = load_file(file)
    bits = tensors[name].view(torch.uint8).reshape(-1)
    bits[len(bits) // 2 + 1] ^= 0b0110_0000  # bf16: of the exponent; MXFP4: of the second value of a byte
    try:
        save_file(tensors, file, metadata={"format": "pt"})
        assert rounding(folder) > 0.5
    finally:
        file.write_bytes(before)


def test_another_scale_is_seen(folder: Path) -> None:
    file = folder / "peft" / "adapter_config.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps({**json.loads(before), "lora_alpha": json.loads(before)["lora_alpha"] * 1.1}))
        assert rounding(folder) > 0.5
    finally:
        file.write_text(before)
