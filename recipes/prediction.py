"""NeMo checkpoints score the tickets of a split, at any layout; for the processes of one torchrun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evaluation import megatron_model
from evaluation.prepared import load_prepared
from evaluation.scoring import LabelScores, save_scores
from modeling import inference
from modeling.layouts import Layout
from recipes.checkpoints import Parts
from recipes.console import rank, say


def begin(layout: Layout, processes: int) -> None:
    """Form the process groups of a layout from the processes that torchrun started."""
    if inference.ON_CPU:
        torch.set_num_threads(1 if processes > 1 else 2)
    inference.initialize(layout)


def load(parts: Parts, *, seq_length: int, precision: str) -> torch.nn.Module:
    """This rank's part of a model; `precision` is "bf16" or "fp32"."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    return megatron_model.load(parts.weights, parts.adapter, config=parts.config(), seq_length=seq_length, dtype=dtype)


def tokenizer_of(parts: Parts) -> Any:
    """The tokenizer that a model was trained with."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(parts.tokenizer())


def predict(
    *,
    systems: Mapping[str, Sequence[str | None]],
    data: str,
    split: str,
    batch_size: int,
    layout: Sequence[int],
    processes: int,
    seq_length: int,
    precision: str,
    out: str,
) -> None:
    """Write the label scores of every system to `out`, as `load_scores` reads them; the arguments of a `recipes.job`.

    Args:
        systems: name → paths of `Parts`.
        layout: TP, EP, PP.
    """
    prepared = load_prepared(Path(data))
    prompts, completions = [ticket.input for ticket in prepared.split(split)], list(prepared.completions.values())
    begin(Layout(*layout), processes)
    scores: dict[str, LabelScores] = {}
    for name, paths in systems.items():
        parts = Parts.of_paths(paths)
        if rank() == 0:
            say(f"{name}: scoring {len(prompts):,} tickets in Megatron, {Layout(*layout)}, {processes} processes")
        model = load(parts, seq_length=seq_length, precision=precision)
        scores[name] = megatron_model.score(model, tokenizer_of(parts), prompts, completions, batch_size)
        del model  # before the next one is built
    if rank() == 0:
        save_scores(Path(out), scores)
