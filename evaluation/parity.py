"""Logits of the model in training against those of its export in transformers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.errors import CheckpointError
from common.progress import Progress, quiet
from common.values import one_line
from evaluation import transformers_layers

KEPT = 64
"""Positions of a prompt whose logits are kept: all of them would be 1.6 GB for four prompts of 512 tokens and gpt-oss's
vocabulary."""


@dataclass(frozen=True)
class Parity:
    """How an export's logits agree with those of the model in training.

    Attributes:
        largest: absolute difference of two logits; infinite where one is no number.
        positions: that were compared.
        likeliest: positions at which both hold the same token for the likeliest.
    """

    largest: float
    positions: int
    likeliest: int


def kept_positions(tokens: torch.Tensor) -> torch.Tensor:
    """(B, K) of prompts (B, S): at most `KEPT` positions of each, evenly from the first to the last."""
    count, length = tokens.shape
    return torch.linspace(0, length - 1, min(length, KEPT)).round().long().expand(count, -1)


def save_logits(file: Path, tokens: torch.Tensor, positions: torch.Tensor, logits: torch.Tensor) -> None:
    """Keep prompts (B, S) and the logits (B, K, V) that the in-framework model gave at their `positions` (B, K)."""
    tensors = {"tokens": tokens, "positions": positions, "logits": logits}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def parity_of(hf_folder: Path, file: Path, progress: Progress = quiet) -> Parity:
    """Compare the kept logits with those of transformers on the exported folder.

    One layer of the export is in memory at a time.

    Raises:
        CheckpointError: the export cannot be loaded or has another vocabulary, or the kept logits are missing.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: run the evaluate stage first.")
    try:
        kept = load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged ({one_line(error)}): run the evaluate stage again.") from error
    exported = transformers_layers.logits(hf_folder, kept["tokens"], kept["positions"], progress)
    if exported.shape != kept["logits"].shape:
        theirs, ours = exported.shape[-1], kept["logits"].shape[-1]
        raise CheckpointError(f"{hf_folder} has a vocabulary of {theirs}, {file} of {ours}: export this run's model.")
    difference = float((exported - kept["logits"]).abs().max())
    same = exported.argmax(-1) == kept["logits"].argmax(-1)
    # NaN is made infinite: no threshold is smaller than NaN
    return Parity(math.inf if math.isnan(difference) else difference, same.numel(), int(same.sum()))
