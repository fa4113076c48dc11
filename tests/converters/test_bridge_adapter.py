"""Adapters of Megatron-Bridge: there and back, as it shares them among experts, and what cannot be expressed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from common.errors import CheckpointError, ConfigurationError
from converters.bridge_adapter import rewrite_adapter
from converters.bridge_config import write_run_config
from converters.export_hf import export_checkpoint
from converters.import_hf import import_checkpoint
from converters.lora import LINEAR_IN, LINEAR_OUT, Adapter
from converters.mapping import TABLE, Place
from converters.storage.nemo_weights import Piece, write_weights
from converters.storage.weights_reader import WeightsReader
from converters.verify import compare_checkpoints
from launch.cli import app
from modeling.hf_config import GptOssConfig
from tests.converters.adapters import ALPHA, RANK, write_adapter

ATTENTION, EXPERTS = "decoder.layers.self_attention.", "decoder.layers.mlp.experts.experts."


@pytest.fixture(scope="module")
def bridge(mxfp4_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_checkpoint(mxfp4_toy, tmp_path_factory.mktemp("bridge") / "model", to="bridge")


@pytest.fixture(scope="module")
def config(mxfp4_toy: Path) -> GptOssConfig:
    return GptOssConfig.from_file(mxfp4_toy)


def tensors_of(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    reader = WeightsReader(folder, prefix)
    return {key: reader.read(key) for key in reader.tensors}


def write_bridge_adapter(
    folder: Path, config: GptOssConfig, base: Path, tensors: dict[str, torch.Tensor], **peft: Any
) -> Path:
    """An adapter as Megatron-Bridge saves one, each tensor in one chunk."""
    pieces = [
        Piece(key, tuple(v.shape), (0,) * v.dim(), tuple(v.shape), v.dtype, v.clone) for key, v in tensors.items()
    ]
    write_weights(folder, pieces)
    write_run_config(
        folder / "run_config.yaml", config, tokenizer="o/t", peft={"dim": RANK, "alpha": ALPHA, **peft}, base=str(base)
    )
    return folder


@pytest.mark.parametrize("layers", [None, [0, 2]], ids=["all layers", "experts of two layers"])
def test_there_and_back(layers: list[int] | None, imported: Path, bridge: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", imported, expert_layers=layers)
    there = rewrite_adapter(adapter, tmp_path / "bridge", to="bridge", base=bridge)
    said = yaml.safe_load((there / "iter_0000000" / "run_config.yaml").read_text())
    assert said["checkpoint"]["pretrained_checkpoint"] == str(bridge)
    assert said["peft"] == {
        "_target_": "megatron.bridge.peft.lora.LoRA",
        "target_modules": ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"],
        "dim": RANK,
        "alpha": ALPHA,
        "dropout": 0.0,
        "share_expert_adapters": False,
    }
    a, b = tensors_of(adapter / "weights", "module."), tensors_of(there / "iter_0000000", "")
    assert a.keys() == b.keys()
    for key, value in a.items():
        rows = layers if layers and EXPERTS in key else slice(None)
        assert torch.equal(b[key][rows], value), key
    if layers:
        assert not b[EXPERTS + "linear_fc1" + LINEAR_OUT][1].any()  # which changes nothing
    back = rewrite_adapter(there, tmp_path / "back", to="nemo", base=imported)
    assert tensors_of(back / "weights", "module.").keys() == a.keys()
    merged = [
        export_checkpoint(base, tmp_path / f"merged-{i}", adapter=one, weights="fp32")
        for i, (base, one) in enumerate([(imported, adapter), (bridge, there), (imported, back), (bridge, adapter)])
    ]
    assert all(compare_checkpoints(merged[0], other).same for other in merged[1:])
    assert not compare_checkpoints(merged[0], imported).same


def test_the_command_by_way_of_peft(imported: Path, bridge: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> None:
        done = CliRunner().invoke(app, ["convert", "adapter", *map(str, arguments)])
        assert done.exit_code == 0, done.exception

    adapter = write_adapter(tmp_path / "adapter", imported)
    run(adapter, tmp_path / "bridge", "--to", "bridge", "--base", bridge)
    run(tmp_path / "bridge", tmp_path / "peft")
    run(tmp_path / "peft", tmp_path / "bridge2", "--to", "bridge", "--base", bridge)
    run(tmp_path / "bridge2", tmp_path / "nemo", "--to", "nemo", "--base", imported)
    first, last = (tensors_of(tmp_path / name / "weights", "module.") for name in ("adapter", "nemo"))
    assert first.keys() == last.keys()
    assert all(torch.equal(value, last[key]) for key, value in first.items())
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "bridge", "bridge2", "peft", "nemo"}


@pytest.mark.parametrize("form", ["an axis of experts", "one for all", "the outer ones for all"])
def test_what_experts_share_is_for_each_of_them(
    form: str, config: GptOssConfig, bridge: Path, imported: Path, tmp_path: Path
) -> None:
    """Megatron-Bridge 0.6 repeats a shared adapter along an axis of experts, older ones and shared_outer do not."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    experts = config.num_experts
    shared = {
        "linear_fc1" + LINEAR_IN: random(3, RANK, 64),
        "linear_fc1" + LINEAR_OUT: random(3, 192, RANK),
        "linear_fc2" + LINEAR_IN: random(3, RANK, 96),
        "linear_fc2" + LINEAR_OUT: random(3, 64, RANK),
    }
    outer = {"linear_fc1" + LINEAR_IN, "linear_fc2" + LINEAR_OUT}
    stored = {
        EXPERTS + key: value
        if form == "one for all" or (form == "the outer ones for all" and key in outer)
        else value[:, None].repeat(1, experts, 1, 1)
        for key, value in shared.items()
    }
    adapter = write_bridge_adapter(tmp_path / "adapter", config, bridge, stored)
    opened = Adapter.open(adapter, config)
    (fc2,) = (entry for entry in TABLE if entry.nemo == EXPERTS + "linear_fc2.weight")
    for expert in range(experts):
        place = Place((1, expert))
        delta = opened.apply(fc2, torch.zeros(64, 96), place)
        expected = ALPHA / RANK * shared["linear_fc2" + LINEAR_OUT][1] @ shared["linear_fc2" + LINEAR_IN][1]
        torch.testing.assert_close(delta, expected)
    nemo = rewrite_adapter(adapter, tmp_path / "nemo", to="nemo", base=imported)
    for key, value in tensors_of(nemo / "weights", "module.").items():
        of_layer = shared[key.removeprefix(EXPERTS)]
        assert torch.equal(value, of_layer[:, None].expand_as(value)), key


def test_ranks_that_differ_are_merged_each_by_its_own(config: GptOssConfig, bridge: Path, tmp_path: Path) -> None:
    """normalize_moe_lora gives experts dim // topk, and scales them by that (megatron-bridge 0.6.2, peft/utils.py)."""
    stored = {
        ATTENTION + "linear_proj" + LINEAR_IN: torch.randn(3, RANK, 160),
        ATTENTION + "linear_proj" + LINEAR_OUT: torch.randn(3, 64, RANK),
        EXPERTS + "linear_fc2" + LINEAR_IN: torch.randn(3, 4, RANK // 2, 96),
        EXPERTS + "linear_fc2" + LINEAR_OUT: torch.randn(3, 4, 64, RANK // 2),
    }
    adapter = write_bridge_adapter(tmp_path / "adapter", config, bridge, stored, normalize_moe_lora=True)
    opened = Adapter.open(adapter, config)
    (fc2,) = (entry for entry in TABLE if entry.nemo == EXPERTS + "linear_fc2.weight")
    outs, ins = (stored[EXPERTS + "linear_fc2" + end][2, 3] for end in (LINEAR_OUT, LINEAR_IN))
    torch.testing.assert_close(opened.apply(fc2, torch.zeros(64, 96), Place((2, 3))), ALPHA / (RANK // 2) * outs @ ins)
    found = CliRunner().invoke(app, ["convert", "adapter", str(adapter), str(tmp_path / "peft")])
    assert isinstance(found.exception, CheckpointError)
    assert "ranks 3 and 6 (normalize_moe_lora)" in str(found.exception)
    assert not (tmp_path / "peft").exists()


def test_what_the_other_lora_has_not(config: GptOssConfig, imported: Path, bridge: Path, tmp_path: Path) -> None:
    trained = write_adapter(tmp_path / "router", imported, router=True)
    with pytest.raises(
        CheckpointError, match=r"trains decoder\.layers\.mlp\.router\.weight in full, which LoRA of Mega"
    ):
        rewrite_adapter(trained, tmp_path / "out", to="bridge", base=bridge)
    router = "decoder.layers.mlp.router"
    stored = {router + LINEAR_IN: torch.randn(3, RANK, 64), router + LINEAR_OUT: torch.randn(3, 4, RANK)}
    low_rank = write_bridge_adapter(tmp_path / "low-rank", config, bridge, stored)
    with pytest.raises(
        CheckpointError, match=r"trains decoder\.layers\.mlp\.router by LoRA, which LoRA of NeMo has not"
    ):
        rewrite_adapter(low_rank, tmp_path / "out", to="nemo", base=imported)
    merged = export_checkpoint(bridge, tmp_path / "merged", adapter=low_rank, weights="fp32")  # the way that is left
    different = compare_checkpoints(merged, export_checkpoint(bridge, tmp_path / "base", weights="fp32")).different
    assert sorted(different) == [f"{router}.weight[{layer}]" for layer in range(3)]
    q = {"linear_qkv.adapter.adapter_q.linear_in.weight": torch.randn(3, RANK, 64)}
    canonical = write_bridge_adapter(tmp_path / "q", config, bridge, {ATTENTION + key: v for key, v in q.items()})
    with pytest.raises(CheckpointError, match=r"the unknown tensor .*adapter_q"):
        export_checkpoint(bridge, tmp_path / "out", adapter=canonical)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("base", ["of the other program", "by default"])
def test_the_base_is_one_of_the_program(base: str, imported: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", imported)
    named = imported if base == "of the other program" else None
    with pytest.raises(
        ConfigurationError, match=r"no checkpoint of Megatron-Bridge: nemo-run convert import .* --to br"
    ):
        rewrite_adapter(adapter, tmp_path / "out", to="bridge", base=named)
    with pytest.raises(ConfigurationError, match="PEFT folder already"):
        _invoke("adapter", _peft(adapter, tmp_path), tmp_path / "out", "--to", "peft", "--base", imported)


def _peft(adapter: Path, folder: Path) -> Path:
    _invoke("adapter", adapter, folder / "peft")
    return folder / "peft"


def _invoke(*arguments: object) -> None:
    runner: Callable[..., Any] = CliRunner().invoke
    runner(app, ["convert", *map(str, arguments)], catch_exceptions=False)
