"""An exported folder in transformers, fp32 on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from errors import CheckpointError
from evaluation.scoring import LogitsFunction


def load(folder: Path) -> tuple[LogitsFunction, Any]:
    """The model's logits function and its tokenizer.

    Raises:
        CheckpointError: transformers cannot load the folder.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"transformers cannot load {folder} ({str(error)[:200]}): export it again.") from error

    @torch.no_grad()
    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return model(tokens).logits.float()

    return logits, tokenizer
