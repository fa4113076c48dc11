"""The two layouts in which PEFT stores the LoRA of a 3-D parameter, and how one tells which of them a file has.

PEFT's `ParamWrapper` holds the factors of all experts in two matrices, experts slowest along the rows of lora_A and
fastest along the columns of lora_B. What it takes for "in" and "out" of gpt-oss's experts, which are multiplied from
the right, depends on its version (`lora/layer.py`) and on `GptOssExperts.is_transposed`, which transformers 5 has and
4.57 has not. vLLM 0.32 reads the first of the two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version

from common.artifacts import read_manifest
from converters.mapping import Entry
from modeling.hf_config import GptOssConfig

KIND = "peft-adapter"
"""Of the manifest of an adapter that this package wrote."""
NOTE = "expert_layout"
"""Field of the safetensors' metadata, and of the manifest, that names the layout."""


class ExpertLayout(StrEnum):
    """Named for the transformers whose PEFT reads it; E experts of rank r, in → out as activations go."""

    transformers5 = "transformers5"
    """lora_A (E·r, in), lora_B (out, r·E): PEFT with transformers 5, PEFT before 0.19 with any, vLLM."""
    transformers4 = "transformers4"
    """lora_A (E·r, out), lora_B (in, r·E): PEFT from 0.19.1 on with transformers 4."""

    @property
    def swapped(self) -> bool:
        """Whether lora_A holds the factor of the output."""
        return self is ExpertLayout.transformers4

    @property
    def words(self) -> str:
        """Shapes and readers, for people."""
        if self.swapped:
            return "lora_A (E·r, out), lora_B (in, r·E), for PEFT ≥ 0.19.1 with transformers 4.57"
        return "lora_A (E·r, in), lora_B (out, r·E), for PEFT with transformers 5, PEFT 0.17 and 0.18, and vLLM"

    def shapes(self, entry: Entry, config: GptOssConfig, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of lora_A and lora_B of one layer's experts."""
        ((out, width),) = entry.hf_shapes(config)
        outer, inner = (width, out) if self.swapped else (out, width)
        return (config.num_experts * rank, inner), (outer, rank * config.num_experts)


def rows_of_experts(lora_a: torch.Tensor, experts: int) -> torch.Tensor:
    """lora_A (E·r, n) → (E, r, n), one view of each expert's rows."""
    return lora_a.unflatten(0, (experts, -1))


def columns_of_experts(lora_b: torch.Tensor, experts: int) -> torch.Tensor:
    """lora_B (n, r·E) → (E, n, r), one view of each expert's columns."""
    return lora_b.unflatten(1, (-1, experts)).permute(2, 0, 1)


def layouts_of_shapes(
    pairs: Sequence[tuple[Entry, int, tuple[int, ...], tuple[int, ...]]], config: GptOssConfig
) -> list[ExpertLayout]:
    """The layouts of which a file's (weight, rank, lora_A's shape, lora_B's shape) all are: both, if all are square."""
    return [
        layout
        for layout in ExpertLayout
        if all((a, b) == layout.shapes(entry, config, rank) for entry, rank, a, b in pairs)
    ]


def layout_by_records(folder: Path, settings: Mapping[str, Any], metadata: Mapping[str, str]) -> ExpertLayout | None:
    """The layout that a folder's own records say or imply; None where they do not.

    Args:
        settings: adapter_config.json.
        metadata: of the safetensors.
    """
    if metadata.get(NOTE) in set(ExpertLayout):
        return ExpertLayout(metadata[NOTE])
    manifest = read_manifest(folder)
    if manifest is not None and manifest.kind == KIND:  # of this package, before it noted the layout
        return ExpertLayout.transformers4
    card = _text(folder / "README.md")
    peft = _version(settings.get("peft_version")) or _version(_after("PEFT", card))
    return _layout_of(peft, _transformers_of(folder, card)) if peft else None


def _layout_of(peft: Version, transformers: Version | None) -> ExpertLayout | None:
    if peft < Version("0.19.0.dev0"):
        return ExpertLayout.transformers5
    if transformers is None:
        return None
    newer = transformers.major >= 5
    if peft.release[:3] == (0, 19, 0):  # asks is_transposed the other way round
        newer = not newer
    return ExpertLayout.transformers5 if newer else ExpertLayout.transformers4


def _transformers_of(folder: Path, card: str) -> Version | None:
    """The transformers that a training ran with, by its card or by what it saved beside the adapter."""
    beside = [_json(folder / name) for name in ("config.json", "generation_config.json", "tokenizer_config.json")]
    recorded = (_after("Transformers", card), *(each.get("transformers_version") for each in beside))
    if known := next(filter(None, map(_version, recorded)), None):
        return known
    # the class that transformers 5 names, and 4 does not know
    return Version("5") if beside[-1].get("tokenizer_class") == "TokenizersBackend" else None


def _after(name: str, card: str) -> str | None:
    """The version in a line "- NAME: 1.2.3" (or without the colon) of a model card."""
    line = re.search(rf"^\W*{name}\W*\s(\d[\w.+]*)", card, re.MULTILINE)
    return line[1] if line else None


def _version(text: Any) -> Version | None:
    try:
        return Version(str(text).partition("@")[0])  # "0.21.3.dev0@1a2b3c" of an installation from git
    except InvalidVersion:
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(file))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
