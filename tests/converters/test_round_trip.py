"""Hugging Face → NeMo → Hugging Face gives back every byte, whatever the shapes; what stands in between is right."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.artifacts import read_manifest
from common.progress import Done
from converters.export_hf import export_checkpoint
from converters.import_hf import import_checkpoint
from converters.storage.weights_reader import WeightsReader
from converters.verify import compare_checkpoints
from tests.conftest import REPOSITORY
from tests.converters.adapters import write_adapter

Tensors = Callable[[Path], dict[str, torch.Tensor]]
Same = Callable[..., bool]
EVERY_CONVERSION = """
import sys
from pathlib import Path

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("nemo", "nemo_run", "megatron", "lightning"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
from converters.export_hf import export_checkpoint
from converters.import_hf import import_checkpoint
from converters.peft.export_peft import export_adapter
from converters.peft.import_peft import import_adapter
from converters.verify import compare_checkpoints

hf, base, adapter, out = map(Path, sys.argv[1:])
report = compare_checkpoints(import_checkpoint(hf, out / "nemo"), base)
print(report.equal, "equal" if report.same else "differ")
export_checkpoint(base, out / "merged", adapter=adapter)
import_adapter(export_adapter(adapter, out / "peft"), out / "back", base=base)
"""
SLOW_AND_SHARED = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)  # the fixture is a function


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.sampled_from([1, 2, 3]))
    hidden = 32 * draw(st.integers(1, 3))
    return {
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_local_experts": draw(st.integers(1, 4)),
        "num_experts_per_tok": 1,
        "hidden_size": hidden,
        # often the same as hidden, where a wrong orientation hides in the shapes; or half of it, where 2F = H
        "intermediate_size": draw(st.sampled_from([hidden, 32, 64, 96])),
        "head_dim": draw(st.sampled_from([4, 8])),
        "num_attention_heads": groups * draw(st.sampled_from([1, 2, 4])),
        "num_key_value_heads": groups,
        "sliding_window": 8,
        "vocab_size": 24,
    }


@settings(max_examples=12, deadline=None, suppress_health_check=SLOW_AND_SHARED)
@given(sizes=shapes(), weights=st.sampled_from(["mxfp4", "bf16"]), seed=st.integers(0, 9), shards=st.integers(1, 3))
def test_there_and_back_is_the_identity(
    sizes: dict[str, Any],
    weights: str,
    seed: int,
    shards: int,
    model: Callable[..., Path],
    tensors: Tensors,
    same: Same,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hf = model(folder / "hf", sizes, weights=weights, seed=seed, shards=shards)
        nemo = import_checkpoint(hf, folder / "nemo")
        back = export_checkpoint(nemo, folder / "back", weights=weights, shard_size="30KB")
        assert same(tensors(hf), tensors(back))
        assert (back / "config.json").read_bytes() == (hf / "config.json").read_bytes()


def test_both_formats_give_the_same_nemo_checkpoint(mxfp4_toy: Path, bf16_toy: Path, tmp_path: Path) -> None:
    """The orientation oracle: MXFP4 rows are (out, in), the bf16 parameter is (in, out)."""
    a = import_checkpoint(mxfp4_toy, tmp_path / "a")
    b = import_checkpoint(bf16_toy, tmp_path / "b")
    report = compare_checkpoints(a, b)
    assert report.same
    assert report.equal == 3 * 13 + 3


def test_position_coded_rows_stand_in_megatrons_order(
    sizes: dict[str, Any], model: Callable[..., Path], tmp_path: Path
) -> None:
    """Each row holds its own address; the expected order is written out here, not computed by the table."""
    from safetensors.torch import load_file, save_file

    hf = model(tmp_path / "hf", sizes, weights="bf16")
    file = next(hf.glob("*.safetensors"))
    tensors = load_file(file)
    layer = "model.layers.1."
    for kind, code in (("q", 1000), ("k", 2000), ("v", 3000)):
        name = f"{layer}self_attn.{kind}_proj.bias"
        tensors[name] = (code + torch.arange(len(tensors[name]))).float()
        tensors[f"model.layers.0.self_attn.{kind}_proj.bias"] = tensors[name].clone()
        tensors[f"model.layers.2.self_attn.{kind}_proj.bias"] = tensors[name].clone()
    gate_up = tensors[layer + "mlp.experts.gate_up_proj"]  # (E, H, 2F)
    experts, hidden, width = gate_up.shape
    address = torch.arange(experts)[:, None, None] * 64 + torch.arange(hidden)[None, :, None]
    tensors[layer + "mlp.experts.gate_up_proj"] = (address + 256 * (torch.arange(width) % 2)).bfloat16()
    save_file({name: t.contiguous() for name, t in tensors.items()}, file, metadata={"format": "pt"})
    weights = WeightsReader(import_checkpoint(hf, tmp_path / "nemo") / "weights")

    qkv = weights.read("decoder.layers.self_attention.linear_qkv.bias", 1).int().tolist()
    # 10 heads and 2 groups of 16 rows: five query heads, then the group's key, then its value
    expected = [1000 + r for r in range(80)] + [2000 + r for r in range(16)] + [3000 + r for r in range(16)]
    expected += [1080 + r for r in range(80)] + [2016 + r for r in range(16)] + [3016 + r for r in range(16)]
    assert qkv == expected

    fc1 = weights.read("decoder.layers.mlp.experts.experts.linear_fc1.weight", 1, 3)  # (2F, H)
    assert fc1.shape == (192, 64)
    assert torch.equal(fc1[:96], (3 * 64 + torch.arange(64)).bfloat16().expand(96, 64))  # gate rows first
    assert torch.equal(fc1[96:], (3 * 64 + 256 + torch.arange(64)).bfloat16().expand(96, 64))  # then up rows


def test_mxfp4_export_reports_what_it_had_to_quantize(bf16_toy: Path, mxfp4_toy: Path, tmp_path: Path) -> None:
    from converters.verify import compare_checkpoints

    nemo = import_checkpoint(bf16_toy, tmp_path / "nemo")  # no scales are known
    out = export_checkpoint(nemo, tmp_path / "out", weights="mxfp4")
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest.details["kept"] == 0
    errors = manifest.details["relative_errors"]
    assert len(errors) == 6  # two matrices in each of three layers
    # the values came from MXFP4, so the OCP rule finds them again but for blocks without a value of the largest binade
    assert all(0 <= error < 0.02 for error in errors.values())
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "mxfp4"
    assert compare_checkpoints(mxfp4_toy, out).dtypes == {}


def test_only_what_an_adapter_touched_is_quantized(
    mxfp4_toy: Path, imported: Path, tmp_path: Path, tensors: Tensors
) -> None:
    adapter = write_adapter(tmp_path / "adapter", imported, expert_layers=[0, 2])
    out = export_checkpoint(imported, tmp_path / "out", adapter=adapter, weights="mxfp4")
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest.details["kept"] == 2 * 4  # layer 1
    errors = manifest.details["relative_errors"]
    names = [f"model.layers.{i}.mlp.experts.{name}" for i in (0, 2) for name in ("down_proj", "gate_up_proj")]
    assert sorted(errors) == names
    assert all(0.05 < error < 0.2 for error in errors.values())  # of random values
    card = (out / "README.md").read_text()
    assert "8 expert matrices carry the original MXFP4" in card
    assert all(f"| {name} | {errors[name]:.4f} |" in card for name in names)
    before, after = tensors(mxfp4_toy), tensors(out)
    for name, stored in before.items():
        if ".experts." in name and name.endswith(("_blocks", "_scales")):
            assert torch.equal(stored, after[name]) == ("layers.1." in name), name


def test_progress_counts_bytes_and_tensors_to_the_end(mxfp4_toy: Path, imported: Path, tmp_path: Path) -> None:
    for convert in (
        lambda out, progress: import_checkpoint(mxfp4_toy, out, progress),
        lambda out, progress: export_checkpoint(imported, out, progress=progress),
    ):
        seen: list[Done] = []
        convert(tmp_path / str(len(list(tmp_path.iterdir()))), seen.append)
        assert [done.note for done in seen] == [f"{i}/{len(seen)} tensors" for i in range(1, len(seen) + 1)]
        assert [done.done for done in seen] == sorted(done.done for done in seen)
        assert seen[-1].done == seen[-1].total


def test_shards_stay_below_their_size(imported: Path, tmp_path: Path) -> None:
    out = export_checkpoint(imported, tmp_path / "out", shard_size="100KB")
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(file.stat().st_size < 110_000 for file in files)


def test_dtypes_are_kept_one_by_one(model: Callable[..., Path], tmp_path: Path, tensors: Tensors, same: Same) -> None:
    """Routers stored in fp32 stay fp32 and exact, and so do one layer's weights, though everything else is bf16."""
    from safetensors.torch import load_file, save_file

    hf = model(tmp_path / "hf", weights="bf16")
    file = next(hf.glob("*.safetensors"))
    stored = load_file(file)
    for layer in range(3):
        name = f"model.layers.{layer}.mlp.router.weight"
        stored[name] = torch.randn(stored[name].shape)
    for name in (
        "self_attn.o_proj.weight",
        "self_attn.sinks",
        "mlp.experts.down_proj",
        "mlp.experts.gate_up_proj_bias",
    ):
        stored[f"model.layers.1.{name}"] = torch.randn(stored[f"model.layers.1.{name}"].shape)
    save_file(stored, file, metadata={"format": "pt"})
    nemo = import_checkpoint(hf, tmp_path / "nemo")
    report = compare_checkpoints(hf, nemo)
    assert (report.same, report.equal) == (True, 42)
    back = export_checkpoint(nemo, tmp_path / "back")
    assert same(tensors(back), stored)
    assert json.loads((back / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("weights", ["fp32", "bf16", "mxfp4"])
def test_exports_load_in_transformers_and_give_the_same_logits(
    mxfp4_toy: Path, imported: Path, tmp_path: Path, weights: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = export_checkpoint(imported, tmp_path / "out", weights=weights, shard_size="100KB")
    tokens = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(0))
    logits = []
    for folder in (mxfp4_toy, out):
        loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()
        with torch.no_grad():
            logits.append(loaded(tokens).logits)
    assert torch.equal(logits[0], logits[1])
    assert len(list(out.glob("*.safetensors"))) > 3
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "t5"}], tokenize=False) == "t5"
    card = (out / "README.md").read_text()
    assert "| stored as | " in card
    assert "\n# nemo\n" in card
    assert "| base | mxfp4 |" in card
    assert str(tmp_path.parent) not in card
    assert str(mxfp4_toy.parent) not in card, "where a folder lies on this machine is nobody's business"


def test_converting_again_does_nothing(imported: Path, mxfp4_toy: Path, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in imported.rglob("*")}
    import_checkpoint(mxfp4_toy, imported)
    assert {file: file.stat().st_mtime_ns for file in imported.rglob("*")} == before


def test_conversions_work_without_nemo(mxfp4_toy: Path, imported: Path, tmp_path: Path) -> None:
    """Not only their modules: every way that a conversion goes, in a process that refuses to import NeMo."""
    adapter = write_adapter(tmp_path / "adapter", imported)
    folders = [mxfp4_toy, imported, adapter, tmp_path]
    command = [sys.executable, "-c", EVERY_CONVERSION, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["42", "equal"]
    back, given = (WeightsReader(folder / "weights") for folder in (tmp_path / "back", adapter))
    assert len(given.tensors) == 8
    assert all(torch.equal(back.read(key), given.read(key)) for key in given.tensors)
    assert (tmp_path / "merged" / "model.safetensors.index.json").is_file()
