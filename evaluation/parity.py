"""Logits of the model in training against those of its export in transformers."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.errors import CheckpointError
from common.values import one_line
from evaluation.transformers_model import load


def save_logits(file: Path, tokens: torch.Tensor, logits: torch.Tensor) -> None:
    """Keep prompts (B, S) and the logits (B, S, V) that the in-framework model gave for them."""
    save_file({"tokens": tokens.contiguous(), "logits": logits.contiguous()}, file)


def largest_difference(hf_folder: Path, file: Path) -> float:
    """Largest absolute difference between the kept logits and transformers' on the exported folder; NaN is infinite.

    Raises:
        CheckpointError: the export cannot be loaded or has another vocabulary, or the kept logits are missing.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: run the evaluate stage first.")
    try:
        kept = load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged ({one_line(error)}): run the evaluate stage again.") from error
    logits, _ = load(hf_folder)
    exported = logits(kept["tokens"])
    if exported.shape != kept["logits"].shape:
        theirs, ours = exported.shape[-1], kept["logits"].shape[-1]
        raise CheckpointError(f"{hf_folder} has a vocabulary of {theirs}, {file} of {ours}: export this run's model.")
    difference = float((exported - kept["logits"]).abs().max())
    return math.inf if math.isnan(difference) else difference  # no threshold is smaller than NaN
