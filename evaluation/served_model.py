"""Label scores of a served model, from the log-probabilities that the server returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.progress import Progress, quiet
from evaluation.scoring import LabelScores
from serving.endpoint import Endpoint, at_once


def decode_by(
    endpoint: Endpoint,
    tokenizer: Any,
    prompts: Sequence[str],
    completions: Sequence[str],
    progress: Progress = quiet,
) -> LabelScores:
    """The scores of `scoring.decode_labels` from a server, with the tokens of the model's own tokenizer.

    Raises:
        RefusedError: the server gives no log-probabilities of prompts. LaunchError: it cannot be reached.
    """
    answers = [tokenizer.encode(completion, add_special_tokens=False) for completion in completions]

    def score(prompt: str) -> tuple[np.ndarray, int]:
        return endpoint.score(tokenizer.encode(prompt, add_special_tokens=False), answers)

    scored = list(at_once(score, prompts, progress))
    return LabelScores(np.stack([scores for scores, _ in scored]), np.array([greedy for _, greedy in scored]))
