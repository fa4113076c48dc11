"""Damaged, incomplete and foreign checkpoints: every one is an error that names the file or tensor; nothing is left."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import CheckpointError, ConfigurationError, NemoRunError
from common.staging import place_of
from converters.export_hf import export_checkpoint
from converters.import_hf import import_checkpoint
from converters.verify import compare_checkpoints

INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00003.safetensors"


def cut(folder: Path) -> None:
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(content[: len(content) // 2])


def corrupt(folder: Path) -> None:
    content = bytearray((folder / SECOND).read_bytes())
    content[9:40] = b"?" * 31
    (folder / SECOND).write_bytes(content)


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Edit one shard's tensors, and let the index follow."""
    file = folder / SECOND
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    index = json.loads((folder / INDEX).read_text())
    others = {name: where for name, where in index["weight_map"].items() if where != SECOND}
    index["weight_map"] = others | dict.fromkeys(tensors, SECOND)
    (folder / INDEX).write_text(json.dumps(index))


def index(folder: Path, edit: Callable[[dict[str, str]], Any]) -> None:
    content = json.loads((folder / INDEX).read_text())
    edit(content["weight_map"])
    (folder / INDEX).write_text(json.dumps(content))


def first(tensors: dict[str, torch.Tensor], end: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(end))


def nan_scale(folder: Path) -> None:
    change(folder, lambda t: t[first(t, "down_proj_scales")][2, 5, 1].fill_(255))


def other_shape(tensors: dict[str, torch.Tensor]) -> None:
    name = first(tensors, "q_proj.bias")
    tensors[name] = tensors[name][1:].clone()


def swap(weight_map: dict[str, str]) -> None:
    name = next(name for name, file in weight_map.items() if file == SECOND)
    weight_map[name] = SECOND.replace("00002-of", "00001-of")


def link(file: Path) -> None:
    """Let a file of the folder be a link to a file beside the folder."""
    file.unlink(missing_ok=True)
    file.symlink_to(f"../{file.parent.name}-private")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def twice_in_index(folder: Path) -> None:
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace('"lm_head.weight"', '"lm_head.weight": "other", "lm_head.weight"'))


def twice_in_header(folder: Path) -> None:
    """The first tensor of a shard under the name of the second."""
    content = (folder / SECOND).read_bytes()
    length = int.from_bytes(content[:8], "little")
    names = [name for name in json.loads(content[8 : 8 + length]) if name != "__metadata__"]
    header = content[8 : 8 + length].replace(f'"{names[0]}"'.encode(), f'"{names[1]}"'.encode())
    (folder / SECOND).write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated shard": (cut, f"{SECOND} is truncated or damaged"),
    "corrupted header": (corrupt, f"{SECOND} is truncated or damaged"),
    "missing shard": (lambda f: (f / SECOND).unlink(), f"{SECOND} is missing"),
    "duplicated shard": (
        lambda f: shutil.copy(f / SECOND, f / "copy.safetensors"),
        "copy.safetensors belongs to no index",
    ),
    "tensor in two shards": (
        lambda f: shutil.copy(f / SECOND, f / SECOND.replace("00002-of", "00001-of")),
        "model-00001-of-00003.safetensors (lacks|holds) ",
    ),
    "wrong index": (lambda f: index(f, swap), "model-00001-of-00003.safetensors lacks model.layers"),
    "index without a tensor": (lambda f: index(f, lambda m: m.pop("lm_head.weight")), "holds lm_head.weight, but"),
    "damaged index": (lambda f: (f / INDEX).write_text('{"weight_map": '), f"{INDEX} is damaged"),
    "NaN scale": (nan_scale, "down_proj, expert 2: an MXFP4 scale is NaN"),
    "unknown tensor": (lambda f: change(f, lambda t: t.update({"model.extra": torch.ones(2)})), "such as model.extra"),
    "missing tensor": (
        lambda f: change(f, lambda t: t.pop(first(t, "sinks"))),
        r"lacks the tensor model.layers.\d.*sinks",
    ),
    "other shape": (lambda f: change(f, other_shape), r"q_proj.bias has shape \(159,\), config.json says \(160,\)"),
    "NaN": (
        lambda f: change(f, lambda t: t[first(t, "o_proj.bias")][3:4].fill_(torch.nan)),
        "o_proj.bias holds values",
    ),
    "infinite": (lambda f: change(f, lambda t: t[first(t, "q_proj.weight")][7, :2].fill_(-torch.inf)), "holds values"),
    "linked license": (lambda f: link(f / "LICENSE"), "LICENSE leads out of its folder"),
    "linked tokenizer": (lambda f: link(f / "tokenizer.json"), "tokenizer.json leads out of its folder"),
    "linked chat template": (lambda f: link(f / "chat_template.jinja"), "jinja leads out of its folder"),
    "linked config": (lambda f: link(f / "config.json"), "config.json leads out of its folder"),
    "linked index": (lambda f: link(f / INDEX), f"{INDEX} leads out of its folder"),
    "linked shard": (lambda f: link(f / SECOND), f"{SECOND} leads out of its folder"),
    "index that climbs": (lambda f: index(f, lambda m: m.update({"x": "../x.safetensors"})), "leads out of its folder"),
    "index to a root": (lambda f: index(f, lambda m: m.update({"x": "/x.safetensors"})), "leads out of its folder"),
    "index to a device": (lambda f: index(f, lambda m: m.update({"x": "/dev/zero"})), "leads out of its folder"),
    "index without end": (lambda f: (f / INDEX).write_text("[" * 200_000), "damaged .it is nested too deeply"),
    "name twice in the index": (twice_in_index, f"{INDEX} is damaged .'lm_head.weight' stands in it twice"),
    "name twice in a header": (twice_in_header, f"{SECOND} is truncated or damaged"),
    "pipe for a shard": (lambda f: pipe(f / SECOND), f"{SECOND} is no file but a folder, a pipe"),
    "pipe for a config": (lambda f: pipe(f / "config.json"), "config.json is no file but"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "lacks its tokenizer"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_wrong_with_a_model_is_named(kind: str, mxfp4_toy: Path, tmp_path: Path) -> None:
    hf = Path(shutil.copytree(mxfp4_toy, tmp_path / "hf"))
    damage, says = DAMAGE[kind]
    damage(hf)
    with pytest.raises((CheckpointError, ConfigurationError), match=says):
        import_checkpoint(hf, tmp_path / "nemo")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def cut_file(nemo: Path) -> None:
    file = max((nemo / "weights").glob("*.distcp"), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_a_file(nemo: Path) -> None:
    max((nemo / "weights").glob("*.distcp"), key=lambda file: file.stat().st_size).unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_file, "weights: .* cannot be read"),
        (without_a_file, "weights: .* cannot be read"),
        (lambda n: (n / "weights" / ".metadata").unlink(), ".metadata is missing"),
        (lambda n: (n / "weights" / ".metadata").write_bytes(b"\x80nonsense"), ".metadata is damaged"),
        (lambda n: (n / "context" / "hf_config.json").unlink(), "name the imported base with --like"),
    ],
    ids=["truncated", "missing", "no metadata", "damaged metadata", "no config"],
)
def test_what_is_wrong_with_a_nemo_checkpoint_is_named(
    damage: Callable[[Path], Any], says: str, imported: Path, tmp_path: Path
) -> None:
    nemo = Path(shutil.copytree(imported, tmp_path / "nemo"))
    damage(nemo)
    with pytest.raises(CheckpointError, match=says):
        export_checkpoint(nemo, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["nemo"]


def test_a_full_disk_is_told_before_the_work(
    mxfp4_toy: Path, imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    for convert, smaller in (
        (lambda: import_checkpoint(mxfp4_toy, tmp_path / "out"), ", or choose --experts mxfp4"),
        (lambda: export_checkpoint(imported, tmp_path / "out"), ", or choose --weights mxfp4"),
        (lambda: import_checkpoint(mxfp4_toy, tmp_path / "out", to="bridge"), ""),
    ):
        told = rf"needs 0.0 GB and .* has 0.0 GB free: make room, name a folder on another disk{smaller}\.$"
        with pytest.raises(CheckpointError, match=told):
            convert()
    assert not list(tmp_path.iterdir())


def test_nobodys_files_are_overwritten(mxfp4_toy: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(NemoRunError, match="was not written by nemo-run"):
        import_checkpoint(mxfp4_toy, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    assert not place_of(tmp_path / "out").exists()


def test_verify_counts_and_names_what_differs(mxfp4_toy: Path, imported: Path, tmp_path: Path) -> None:
    hf = Path(shutil.copytree(mxfp4_toy, tmp_path / "hf"))
    change(hf, lambda t: t[first(t, "o_proj.bias")].add_(torch.tensor([0.0] * 63 + [2.0])))
    report = compare_checkpoints(hf, imported)
    assert (report.equal, len(report.different), report.same) == (41, 1, False)
    name, largest = report.largest
    assert name.startswith("decoder.layers.self_attention.linear_proj.bias[")
    assert largest == pytest.approx(2, rel=0.02)


def test_verify_tells_dtypes_apart(imported: Path, tmp_path: Path) -> None:
    out = export_checkpoint(imported, tmp_path / "out", weights="fp32")
    report = compare_checkpoints(imported, out)
    assert (report.equal, len(report.different), len(report.dtypes)) == (0, 0, 42)
    assert not report.same


def test_the_verify_command_exits_with_one_where_anything_differs(
    mxfp4_toy: Path, imported: Path, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from launch.commands.convert import app

    same = CliRunner().invoke(app, ["verify", str(mxfp4_toy), str(imported)])
    assert same.exit_code == 0
    assert "42 tensors equal, 0 different" in same.output
    hf = Path(shutil.copytree(mxfp4_toy, tmp_path / "hf"))
    change(hf, lambda t: t[first(t, "sinks")].add_(1))
    other = CliRunner().invoke(app, ["verify", str(hf), str(imported)])
    assert other.exit_code == 1
    assert "41 tensors equal, 1 different" in other.output
    assert "largest difference 1.0" in other.output
    assert "softmax_offset[" in other.output


def test_nothing_private_comes_into_an_export(imported: Path, tmp_path: Path) -> None:
    """A NeMo checkpoint of somebody else's, whose license, tokenizer or configuration is a link."""
    (tmp_path / "nemo-private").write_text("{}")
    for name in ("context/LICENSE", "context/nemo_tokenizer/tokenizer_config.json", "context/hf_config.json"):
        nemo = Path(shutil.copytree(imported, tmp_path / "nemo"))
        file = nemo / name
        file.unlink(missing_ok=True)
        file.symlink_to(tmp_path / "nemo-private")
        with pytest.raises(CheckpointError, match=f"{file.name} leads out of its folder"):
            export_checkpoint(nemo, tmp_path / "out")
        shutil.rmtree(nemo)
    assert not (tmp_path / "out").exists()


def test_a_diverged_training_is_not_exported(imported: Path, tmp_path: Path, bf16_toy: Path) -> None:
    """NaN in a checkpoint that training wrote: here by a kernel of the same size put into the file."""
    nemo = import_checkpoint(bf16_toy, tmp_path / "nemo")
    tensor = load_file(next(bf16_toy.glob("*.safetensors")))["model.norm.weight"].view(torch.int16).numpy().tobytes()
    for file in (nemo / "weights").glob("*.distcp"):
        content = file.read_bytes()
        if tensor in content:
            file.write_bytes(content.replace(tensor, b"\xc0\x7f" * (len(tensor) // 2)))
    with pytest.raises(CheckpointError, match=r"final_layernorm.weight holds values that are no finite numbers"):
        export_checkpoint(nemo, tmp_path / "out")
    assert not (tmp_path / "out").exists()
