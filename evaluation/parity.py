"""Logits of the model in training against those of its export in transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from errors import CheckpointError
from evaluation.transformers_model import load


def save_logits(file: Path, tokens: torch.Tensor, logits: torch.Tensor) -> None:
    """Keep prompts (B, S) and the logits (B, S, V) that the in-framework model gave for them."""
    save_file({"tokens": tokens.contiguous(), "logits": logits.contiguous()}, file)


def largest_difference(hf_folder: Path, file: Path) -> float:
    """Largest absolute difference between the kept logits and transformers' on the exported folder.

    Raises:
        CheckpointError: the export cannot be loaded, or the kept logits are missing.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: run the evaluate stage first.")
    kept = load_file(file)
    logits, _ = load(hf_folder)
    return float((logits(kept["tokens"]) - kept["logits"]).abs().max())
