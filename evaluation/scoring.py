"""How likely a model finds each label after a prompt: exact log-probabilities over the label set only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

LogitsFunction = Callable[[torch.Tensor], torch.Tensor]
"""int64 (B, S), padded on the right → fp32 (B, S, V)."""


def score_labels(
    logits: LogitsFunction, tokenizer: Any, prompts: list[str], completions: list[str], batch_size: int
) -> np.ndarray:
    """Log-probability of each completion after each prompt, (N, labels): the sum over the completion's tokens.

    A forward pass over prompt + prefix serves all completions that share that prefix: one pass where all completions
    differ in their first token only, more where they are longer. Prompts are batched by length.
    """
    encoded = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    answers = [tokenizer.encode(completion, add_special_tokens=False) for completion in completions]
    stems = _stems(answers)
    scores = np.zeros((len(prompts), len(answers)), dtype=np.float64)
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for stem, labels in stems.items():
            found = _log_probabilities(logits, [encoded[i] for i in chosen], stem)
            for label, positions in labels.items():
                for position, token in positions:
                    scores[chosen, label] += found[:, position, token]
    return scores


def _stems(answers: list[list[int]]) -> dict[tuple[int, ...], dict[int, list[tuple[int, int]]]]:
    """Prefixes to run the model on; for each, of which answers it predicts which tokens at which positions.

    A token is scored once, on the first stem that holds everything before it.
    """
    wanted = sorted({tuple(answer[:-1]) for answer in answers}, key=len, reverse=True)
    stems: list[tuple[int, ...]] = []
    for stem in wanted:
        if not any(longer[: len(stem)] == stem for longer in stems):
            stems.append(stem)
    plan: dict[tuple[int, ...], dict[int, list[tuple[int, int]]]] = {stem: {} for stem in stems}
    for label, answer in enumerate(answers):
        stem = next(stem for stem in stems if stem[: len(answer) - 1] == tuple(answer[:-1]))
        plan[stem][label] = list(enumerate(answer))
    return plan


def _log_probabilities(logits: LogitsFunction, prompts: list[list[int]], stem: tuple[int, ...]) -> np.ndarray:
    """(B, len(stem) + 1, V): the distribution after the prompt, and after each token of the stem."""
    rows = [[*prompt, *stem] for prompt in prompts]
    width = max(len(row) for row in rows)
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    found = logits(tokens)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])[:, None] + torch.arange(len(stem) + 1)
    picked = found[torch.arange(len(rows))[:, None], last]
    return torch.log_softmax(picked.double(), dim=-1).numpy()
