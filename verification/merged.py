"""A merged export against its base and the PEFT adapter of the same run: W + (alpha / r) · B · A, written out in torch.

Logits cannot say whether a merge is right where the weights are random: near-tied routers of 24 layers make 0.4 of the
logits' spread from a change of 0.4 % in three layers. Weight by weight nothing is amplified.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open

from modeling.mxfp4 import BLOCK, dequantize

FEW_BITS = 1e-3  # sums of fp32 in another order, as a share of a step


def worst_rounding(base: Path, peft: Path, export: Path) -> float:
    """Largest error of an adapted weight in the export, where rounding to its format alone gives at most 0.5.

    Args:
        base, export: Hugging Face folders with MXFP4 experts.
        peft: adapter on `base`, in the layout of transformers 5.
    Returns:
        Steps between numbers of the format (bf16, MXFP4) at the weight; beyond ±6 MXFP4 has no numbers.
    """
    with ExitStack() as stack:
        before, adapter, after = (_Files(folder, stack) for folder in (base, peft, export))
        settings = json.loads((peft / "adapter_config.json").read_text())
        scale = settings["lora_alpha"] / settings["r"]
        errors = [
            error
            for name in adapter.names()
            if name.endswith(".lora_A.weight")
            for error in _errors(name.removesuffix(".lora_A.weight"), scale, before, adapter, after)
        ]
    return max(errors)


def _errors(name: str, scale: float, before: _Files, adapter: _Files, after: _Files) -> Iterator[float]:
    down, up = (adapter.read(f"{name}.lora_{side}.weight").float() for side in "AB")
    target = name.removeprefix("base_model.model.")
    if ".experts" not in target:
        weight = f"{target}.weight"
        yield _bf16_steps(before.read(weight).float() + scale * up @ down, after.read(weight))
        return
    # PEFT nests the wrappers of two parameters of one module: the outer one is the second, `down_proj`
    parameter = "gate_up_proj" if target.endswith(".base_layer") else "down_proj"
    stored = f"{target.removesuffix('.base_layer')}.{parameter}"
    pairs = [(files.read(f"{stored}_blocks"), files.read(f"{stored}_scales")) for files in (before, after)]
    experts = len(pairs[0][0])
    for expert in range(experts):
        rank = down.shape[0] // experts
        change = scale * up[:, expert::experts] @ down[expert * rank : (expert + 1) * rank]
        old, new = (_decoded(blocks[expert], scales[expert]) for blocks, scales in pairs)
        yield _mxfp4_steps(old + change, new, pairs[1][1][expert])


def _bf16_steps(wanted: torch.Tensor, found: torch.Tensor) -> float:
    step = torch.exp2(torch.floor(torch.log2(wanted.abs().clamp(min=1e-30))) - 7)
    return float(((found.float() - wanted).abs() / step).max()) - FEW_BITS


def _mxfp4_steps(wanted: torch.Tensor, found: torch.Tensor, scales: torch.Tensor) -> float:
    """(out, in) each, scales (out, in / 32). Steps of E2M1 are 0.5 up to 2, 1 up to 4, then 2."""
    unit = torch.exp2(scales.float() - 127).repeat_interleave(BLOCK, -1)
    wanted, found = (wanted / unit).clamp(-6, 6), found / unit
    step = torch.where(wanted.abs() <= 2, 0.5, torch.where(wanted.abs() <= 4, 1.0, 2.0))
    return float(((found - wanted).abs() / step).max()) - FEW_BITS


def _decoded(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    bits = torch.from_numpy(dequantize(blocks.numpy(), scales.numpy()).view("int16"))
    return bits.view(torch.bfloat16).float()


class _Files:
    """The tensors of a folder's safetensors, read one by one."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        files = [stack.enter_context(safe_open(file, "pt")) for file in sorted(folder.glob("*.safetensors"))]
        self._file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118  # no iterator

    def names(self) -> list[str]:
        return list(self._file_of)

    def read(self, name: str) -> torch.Tensor:
        return self._file_of[name].get_tensor(name)
