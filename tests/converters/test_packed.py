"""Imports whose experts stay MXFP4: the same model as with bf16 experts, to every tool that reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.errors import ConfigurationError
from common.values import bytes_of
from converters.export_hf import export_checkpoint
from converters.hf_reader import HfReader
from converters.import_hf import import_checkpoint
from converters.mapping import TABLE
from converters.nemo_reader import NemoReader
from converters.verify import compare_checkpoints
from evaluation.weight_changes import changes
from tests.converters.adapters import write_adapter
from tests.converters.conftest import identical, read_tensors


@pytest.fixture(scope="module")
def packed(mxfp4_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_checkpoint(mxfp4_toy, tmp_path_factory.mktemp("packed") / "nemo", experts="mxfp4")


def test_its_experts_take_four_and_a_quarter_bits_a_value(packed: Path) -> None:
    reader = NemoReader(packed)
    assert reader.packed
    values = sum(
        int(torch.Size(entry.stored(config_of(packed), packed=False)[entry.nemo]).numel())
        for entry in TABLE
        if entry.is_expert_matrix
    )
    stored = [tensor for key, tensor in reader.weights.tensors.items() if key.endswith(("_blocks", "_scales"))]
    assert {tensor.properties.dtype for tensor in stored} == {torch.uint8}
    assert sum(tensor.size.numel() for tensor in stored) / values == 4.25 / 8


def config_of(nemo: Path):
    from converters.nemo_folder import config_of

    return config_of(nemo, "")


def test_every_value_is_the_sources_and_the_bf16_imports(packed: Path, mxfp4_toy: Path, imported: Path) -> None:
    for other in (mxfp4_toy, imported):
        report = compare_checkpoints(packed, other)
        assert report.same
        assert report.equal == len(TABLE[:3]) + 3 * (len(TABLE) - 3)


def test_it_exports_its_source_byte_for_byte(packed: Path, mxfp4_toy: Path, tmp_path: Path) -> None:
    """By default: a checkpoint is exported as it is."""
    out = export_checkpoint(packed, tmp_path / "out")
    assert identical(read_tensors(out), read_tensors(mxfp4_toy))
    assert (out / "config.json").read_bytes() == (mxfp4_toy / "config.json").read_bytes()


@pytest.mark.parametrize("weights", ["bf16", "fp32", "mxfp4"])
@pytest.mark.parametrize("expert_layers", [None, [0, 2]], ids=["all experts", "some experts"])
def test_an_adapter_is_merged_as_into_bf16_experts(
    weights: str, expert_layers: list[int] | None, packed: Path, imported: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", imported, expert_layers=expert_layers, router=True)
    found, wanted = (
        export_checkpoint(base, tmp_path / name, adapter=adapter, weights=weights)
        for name, base in (("found", packed), ("wanted", imported))
    )
    assert identical(read_tensors(found), read_tensors(wanted))


def test_inspection_measures_the_same_changes(packed: Path, imported: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", imported)
    config = config_of(packed)
    assert changes(packed, adapter, config, is_adapter=True) == changes(imported, adapter, config, is_adapter=True)


def test_what_is_not_published_as_mxfp4_cannot_stay_so(bf16_toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no MXFP4 experts that could stay so"):
        import_checkpoint(bf16_toy, tmp_path / "nemo", experts="mxfp4")
    assert not (tmp_path / "nemo").exists()


def test_both_kinds_of_import_are_told_apart(packed: Path, mxfp4_toy: Path, tmp_path: Path) -> None:
    nemo = tmp_path / "nemo"
    sizes = []
    for experts in ("bf16", "mxfp4", "mxfp4"):
        import_checkpoint(mxfp4_toy, nemo, experts=experts)
        sizes.append(bytes_of(nemo / "weights"))
    assert sizes[0] > 1.5 * sizes[1] == 1.5 * sizes[2]
    assert (nemo / "weights" / ".metadata").read_bytes() == (packed / "weights" / ".metadata").read_bytes()


def test_a_damaged_scale_is_named(mxfp4_toy: Path, tmp_path: Path, model: Callable[..., Path]) -> None:
    from safetensors.torch import load_file, save_file

    from common.errors import CheckpointError

    hf = model(tmp_path / "hf")
    (file,) = hf.glob("*.safetensors")
    tensors = load_file(file)
    name = "model.layers.1.mlp.experts.down_proj_scales"
    tensors[name][3, 5, 1] = 255
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.down_proj, expert 3: an MXFP4 scale is NaN"):
        import_checkpoint(hf, tmp_path / "nemo", experts="mxfp4")
    assert HfReader(hf).mxfp4
