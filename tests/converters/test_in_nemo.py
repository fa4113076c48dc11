"""Our checkpoints in NeMo itself: the logits of transformers at every layout, merging, contexts, restoring."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.export_hf import export_checkpoint
from converters.import_hf import import_checkpoint
from converters.mapping import TABLE
from converters.peft.export_peft import export_adapter
from converters.peft.import_peft import import_adapter
from converters.storage.weights_reader import WeightsReader
from tests.converters.adapters import write_adapter
from tests.converters.conftest import SIZES, write_model

SCRIPT = Path(__file__).with_name("in_nemo.py")
pytestmark = pytest.mark.slow


Sizes = tuple[int, int, int]
"""Tensor, expert and pipeline parallel."""


def in_nemo(task: str, folder: Path, *layouts: Sizes) -> None:
    """Do a task at layouts of equally many processes, in the same processes: NeMo takes its time to import."""
    (processes,) = {max(tensor, expert) * pipeline for tensor, expert, pipeline in layouts}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [*launch, str(SCRIPT), task, str(folder), *(",".join(map(str, sizes)) for sizes in layouts)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]


def in_fp32(hf: Path, name: str) -> None:
    """Give one layer's weight a dtype of its own, and values that bf16 cannot hold."""
    (file,) = hf.glob("*.safetensors")
    tensors = load_file(file)
    tensors[name] = tensors[name].float() * 1.001
    save_file(tensors, file, metadata={"format": "pt"})


def fused_adapter(folder: Path, nemo: Path) -> None:
    """`adapter-fused`: of a PEFT adapter whose query and value have a lora_A each, and whose key has none."""
    peft = export_adapter(write_adapter(folder / "apart", nemo, expert_layers=[1]), folder / "peft")
    file = peft / "adapter_model.safetensors"
    tensors = {name: value for name, value in load_file(file).items() if ".k_proj." not in name}
    save_file({n: v * (1 + (".q_proj.lora_A" in n)) for n, v in tensors.items()}, file, metadata={"format": "pt"})
    import_adapter(peft, folder / "adapter-fused", base=nemo)


def transformers_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from evaluation.transformers_model import load

    return load(folder)[0](tokens)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MXFP4 model with layers for two pipeline stages, its import, adapters, and tokens longer than the window."""
    folder = tmp_path_factory.mktemp("in_nemo")
    hf = write_model(folder / "hf", SIZES | {"num_hidden_layers": 4, "num_local_experts": 6})
    in_fp32(hf, "model.layers.1.self_attn.o_proj.weight")
    nemo = import_checkpoint(hf, folder / "nemo")
    import_checkpoint(hf, folder / "packed", experts="mxfp4")
    write_adapter(folder / "adapter-everything", nemo, router=True)
    write_adapter(folder / "adapter-some-layers", nemo, expert_layers=[1, 2])
    write_adapter(folder / "adapter-attention", nemo, expert_layers=[])
    fused_adapter(folder, nemo)
    torch.save(torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(0)), folder / "tokens.pt")
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, torch.Tensor]:
    """transformers' logits of the source, and of the export with each adapter merged in fp32."""
    tokens = torch.load(folder / "tokens.pt")
    found = {"base": transformers_logits(folder / "hf", tokens)}
    for adapter in folder.glob("adapter-*"):
        out = export_checkpoint(folder / "nemo", folder / f"with-{adapter.name}", adapter=adapter, weights="fp32")
        found[adapter.name] = transformers_logits(out, tokens)
    return found


@pytest.mark.parametrize(
    "layouts",
    [[(1, 1, 1)], [(2, 1, 1), (1, 2, 1), (1, 1, 2)], [(2, 2, 1)]],
    ids=["TP1", "TP2, EP2, PP2", "TP2×EP2"],
)
def test_nemo_computes_what_transformers_computes(
    layouts: list[Sizes], folder: Path, expected: dict[str, torch.Tensor]
) -> None:
    in_nemo("logits", folder, *layouts)
    assert expected["base"].std() > 0.5, "logits without spread would prove nothing"
    for sizes in layouts:
        found: dict[tuple[str, str], torch.Tensor] = torch.load(folder / f"logits-{'-'.join(map(str, sizes))}.pt")
        assert len(found) == 2 * len(expected)
        for name in expected:
            assert (found["nemo", name] - expected[name]).abs().max() <= 1e-4, (sizes, name)
            assert torch.equal(found["packed", name], found["nemo", name]), (sizes, name)
            assert name == "base" or (expected[name] - expected["base"]).abs().max() > 0.1, name


@pytest.mark.parametrize("tensor", [1, 2])
def test_nemo_restores_the_import_by_its_own_context(
    tensor: int, folder: Path, expected: dict[str, torch.Tensor]
) -> None:
    in_nemo("resume", folder, (tensor, 1, 1))
    (ids, logits), (_, packed) = torch.load(folder / "resumed.pt")
    assert ids == [3, 4]
    assert (logits - expected["base"]).abs().max() <= 1e-4
    assert torch.equal(packed, logits)


def test_merging_attention_equals_nemos_own(folder: Path) -> None:
    """Tensor by tensor, within the rounding of NeMo's merge, which adds bf16 to bf16."""
    in_nemo("merge", folder, (1, 1, 1))
    ours = export_checkpoint(folder / "nemo", folder / "ours", adapter=folder / "adapter-attention", weights="fp32")
    a = WeightsReader(import_checkpoint(ours, folder / "ours-nemo") / "weights")
    b, base = WeightsReader(folder / "merged" / "weights"), WeightsReader(folder / "nemo" / "weights")
    for entry in TABLE:
        x, y = a.read(entry.nemo), b.read(entry.nemo).float()
        if "self_attention.linear_" in entry.nemo and entry.nemo.endswith(".weight"):
            torch.testing.assert_close(y, x, rtol=2**-7, atol=2**-7)
            assert (x - base.read(entry.nemo).float()).abs().max() > 0.1
        else:
            assert torch.equal(x, y), entry.nemo
