"""Our Megatron-Bridge folders in megatron-core 0.19.2 and in Megatron-Bridge 0.6.2, and theirs in this package."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from converters.bridge_adapter import rewrite_adapter
from converters.export_hf import export_checkpoint
from converters.import_hf import import_checkpoint
from converters.rewrite import rewrite_checkpoint
from converters.storage.checked_folder import ensure_safe
from converters.storage.weights_reader import WeightsReader
from converters.verify import compare_checkpoints
from tests.conftest import run_to_its_end
from tests.converters.adapters import write_adapter
from tests.converters.conftest import SIZES, write_model
from tests.converters.megatron_bridge import environment
from tests.converters.test_in_nemo import transformers_logits

pytestmark = [pytest.mark.slow, pytest.mark.foreign]
WITHOUT_ENGINE = ("pre_mlp_layernorm", "self_attention.core_attention")
"""Modules that have an extra state in Transformer Engine's layer spec only."""


def run(script: str, folder: Path, *environments: Path) -> None:
    environment.require(*environments)
    command = [sys.executable, "-W", "ignore", "-m", f"tests.converters.megatron_bridge.{script}", str(folder)]
    done = run_to_its_end(command, env=environment.variables(*environments), timeout=300, cwd=environment.REPOSITORY)
    assert done.status == 0, done.err[-4000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MXFP4 model, its folder for Megatron-Bridge, an adapter, and tokens longer than the window."""
    environment.require(environment.FOLDER)
    folder = tmp_path_factory.mktemp("in_bridge")
    hf = write_model(folder / "hf", SIZES | {"num_hidden_layers": 4, "num_local_experts": 6})
    bridge = import_checkpoint(hf, folder / "bridge", to="bridge")
    bridge32 = rewrite_checkpoint(bridge, folder / "bridge32", to="bridge", weights="fp32")
    adapter = write_adapter(folder / "nemo-adapter", import_checkpoint(hf, folder / "nemo"), expert_layers=[0, 2])
    rewrite_adapter(adapter, folder / "adapter", to="bridge", base=bridge32)
    torch.save(torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(0)), folder / "tokens.pt")
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> torch.Tensor:
    logits = transformers_logits(folder / "hf", torch.load(folder / "tokens.pt"))
    assert logits.std() > 0.5, "logits without spread would prove nothing"
    return logits


@pytest.fixture(scope="module")
def in_core(folder: Path) -> Path:
    run("in_megatron_core", folder, environment.FOLDER)
    return folder


@pytest.fixture(scope="module")
def in_bridge(folder: Path) -> dict[str, Any]:
    run("in_bridge", folder, environment.FOLDER, environment.ENGINE)
    return json.loads((folder / "report.json").read_text())


def test_megatron_core_finds_every_key_and_knows_every_one(in_core: Path) -> None:
    keys = json.loads((in_core / "keys.json").read_text())
    engines = [f"decoder.layers.{name}._extra_state" for name in WITHOUT_ENGINE]
    assert keys == {"missing": [], "unread": ["decoder.final_layernorm._extra_state", *engines]}


def test_megatron_core_computes_what_transformers_computes(in_core: Path, expected: torch.Tensor) -> None:
    assert (torch.load(in_core / "logits.pt") - expected).abs().max() <= 1e-4


def test_what_megatron_core_saves_is_read_bit_for_bit(in_core: Path) -> None:
    saved = in_core / "saved" / "iter_0000007"
    ensure_safe(saved)
    (saved / "run_config.yaml").write_bytes((in_core / "bridge" / "iter_0000000" / "run_config.yaml").read_bytes())
    assert WeightsReader(saved, "").common()["iteration"] == 7  # an object of the checkpoint, not common.pt
    assert not (saved / "common.pt").exists()
    report = compare_checkpoints(in_core / "bridge", saved)
    assert report.same
    assert report.equal == 4 * 13 + 3


def test_bridge_loads_our_folder(in_bridge: dict[str, Any], folder: Path, expected: torch.Tensor) -> None:
    assert (torch.load(folder / "loaded.pt") - expected).abs().max() <= 1e-4
    assert in_bridge["ids"] == [3, 4]
    assert in_bridge["step"] == 0
    assert in_bridge["hub id"] is None  # a folder's path would mean nothing elsewhere


@pytest.mark.parametrize("theirs", ["saved", "imported"])
def test_bridges_own_folders_are_ours_bit_for_bit(theirs: str, in_bridge: dict[str, Any], folder: Path) -> None:
    ensure_safe(folder / theirs / "iter_0000000")
    report = compare_checkpoints(folder / theirs, folder / "bridge")
    assert report.same
    assert report.equal == 4 * 13 + 3
    keys = [
        set(WeightsReader(folder / n / "iter_0000000", "").metadata.state_dict_metadata) for n in (theirs, "bridge")
    ]
    assert keys[0] - keys[1] == {"common_state/shard_0_1"}
    assert keys[1] <= keys[0]  # the states of Transformer Engine's modules, by its own layer spec


def test_bridges_own_import_is_exported_as_the_model_it_was_made_from(
    in_bridge: dict[str, Any], folder: Path, expected: torch.Tensor
) -> None:
    """Its config.json comes from Megatron-Bridge's run config alone."""
    from transformers import AutoModelForCausalLM

    out = export_checkpoint(folder / "imported", folder / "exported")
    assert compare_checkpoints(folder / "hf", out).same
    model = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager").float().eval()
    with torch.no_grad():
        assert torch.equal(model(torch.load(folder / "tokens.pt")).logits, expected)


def test_our_merge_is_what_bridges_lora_computes_and_bridges_own_merge_is_not(
    in_bridge: dict[str, Any], folder: Path, expected: torch.Tensor
) -> None:
    """megatron-bridge 0.6.2 (peft_bridge.py) adds Megatron's delta to a matrix that is transposed and interleaved."""
    merged = export_checkpoint(folder / "bridge32", folder / "merged", adapter=folder / "adapter")
    ours = transformers_logits(merged, torch.load(folder / "tokens.pt"))
    assert (ours - expected).abs().max() > 1
    assert (torch.load(folder / "adapted.pt") - ours).abs().max() <= 1e-4
    assert "must match the size" in in_bridge["merge"]
