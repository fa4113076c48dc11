"""Experts that are linear layers one by one, as Unsloth keeps and saves them, seen through Hugging Face's names.

Each is a matrix of rows of its output, gate and up interleaved as Hugging Face has them along the last axis. Other
programs' ways to store experts are not read; what they are is said.
"""

from __future__ import annotations

import re
from collections.abc import Collection

MARK = "model.layers.0.mlp.experts.gate_up_projs.0.weight"
"""A tensor that only this layout has."""
# Ends of tensor names by the format of the weights that they belong to.
_QUANTIZED = {
    ".absmax": "bitsandbytes' 4 bits",
    ".SCB": "bitsandbytes' 8 bits",
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "FP8 or NVFP4",
    ".biases": "MLX",
}


def stored_at(name: str, expert: int | None) -> str:
    """The tensor that holds Hugging Face's `name`: of one expert where it is of experts; the router is a layer too."""
    if expert is None:
        return re.sub(r"\.mlp\.router\.(weight|bias)$", r".mlp.router.linear.\1", name)
    module, end = (name.removesuffix("_bias"), "bias") if name.endswith("_bias") else (name, "weight")
    return f"{module}s.{expert}.{end}"


def foreign_layout(names: Collection[str]) -> str | None:
    """What is stored in a way that is not read, with the tensor that shows it; None where nothing is."""
    for name in sorted(names):
        for end, what in _QUANTIZED.items():
            if name.endswith(end):
                return f"weights quantized by {what} ({name})"
        if MARK not in names and re.search(r"\.experts\.(\w+\.)?\d+\.", name):
            return f"experts one by one under other names than Unsloth's ({name})"
    return None
