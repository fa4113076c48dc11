"""Experts that are linear layers one by one, as Unsloth saves them, and the layouts that are only named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import CheckpointError
from converters.export_hf import export_checkpoint
from converters.import_hf import import_checkpoint
from converters.verify import compare_checkpoints

Tensors = dict[str, torch.Tensor]


def rewritten(model: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """The same folder with other tensors in its one file."""
    (file,) = model.glob("*.safetensors")
    save_file({name: value.contiguous() for name, value in change(load_file(file)).items()}, file)
    (model / "model.safetensors.index.json").unlink()
    file.rename(model / "model.safetensors")
    return model


def apart(tensors: Tensors) -> Tensors:
    """As `nn.ModuleList`s of `nn.Linear(H, 2F)` and `nn.Linear(F, H)`, and a router that is one."""
    new: Tensors = {}
    for name, value in tensors.items():
        module, _, parameter = name.rpartition(".")
        if ".experts." in name:
            kind, end = parameter.removesuffix("_bias"), "bias" if parameter.endswith("_bias") else "weight"
            for expert, part in enumerate(value):
                new[f"{module}.{kind}s.{expert}.{end}"] = part.T if end == "weight" else part
        else:
            new[name.replace(".router.", ".router.linear.")] = value
    return new


def test_they_are_the_same_model(tmp_path: Path, model: Callable[..., Path], tensors: Callable, same: Callable) -> None:
    hf = model(tmp_path / "hf", weights="bf16")
    single = rewritten(model(tmp_path / "single", weights="bf16"), apart)
    nemo = import_checkpoint(single, tmp_path / "nemo")
    assert compare_checkpoints(hf, nemo).same
    assert compare_checkpoints(hf, single).same
    assert same(tensors(export_checkpoint(nemo, tmp_path / "back")), tensors(hf))


def test_a_router_of_the_usual_name_is_read_too(tmp_path: Path, model: Callable[..., Path]) -> None:
    hf = model(tmp_path / "hf", weights="bf16")
    single = model(tmp_path / "single", weights="bf16")
    rewritten(single, lambda t: {name.replace(".linear.", "."): value for name, value in apart(t).items()})
    assert compare_checkpoints(hf, single).same


def without_one(tensors: Tensors) -> Tensors:
    tensors = apart(tensors)
    del tensors["model.layers.1.mlp.experts.down_projs.3.weight"]
    return tensors


def transposed(tensors: Tensors) -> Tensors:
    tensors = apart(tensors)
    name = "model.layers.2.mlp.experts.gate_up_projs.1.weight"
    return tensors | {name: tensors[name].T}


def of_two_dtypes(tensors: Tensors) -> Tensors:
    tensors = apart(tensors)
    name = "model.layers.2.mlp.experts.gate_up_projs.1.weight"
    return tensors | {name: tensors[name].float()}


def quantized(tensors: Tensors) -> Tensors:
    tensors = apart(tensors)
    name = "model.layers.0.mlp.experts.gate_up_projs.0.weight"
    return tensors | {name: torch.zeros(96, 1, dtype=torch.uint8), f"{name}.absmax": torch.ones(3)}


def like_mixtral(tensors: Tensors) -> Tensors:
    return {name.replace(".experts.", ".experts.0."): value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_one, r"lacks the tensor model.layers.1.mlp.experts.down_projs.3.weight"),
        (
            transposed,
            r"layers.2.mlp.experts.gate_up_projs.1.weight has shape \(64, 192\), config.json says",
        ),
        (of_two_dtypes, r"gate_up_projs.3.weight and .*gate_up_projs.1.weight have different dtypes"),
        (quantized, r"weights quantized by bitsandbytes' 4 bits \(model.layers.0.*absmax\).* save it in bf16"),
        (
            like_mixtral,
            r"experts one by one under other names than Unsloth's \(.*0.mlp.experts.0.down_proj\)",
        ),
    ],
)
def test_what_is_not_read_is_named(
    change: Callable[[Tensors], Tensors], says: str, tmp_path: Path, model: Callable[..., Path]
) -> None:
    hf = rewritten(model(tmp_path / "hf", weights="bf16"), change)
    with pytest.raises(CheckpointError, match=says):
        import_checkpoint(hf, tmp_path / "nemo")
    assert not (tmp_path / "nemo").exists()
