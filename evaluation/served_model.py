"""Label scores of a served model, from the log-probabilities that the server returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from common.progress import Done, Progress, quiet
from evaluation.scoring import LabelScores
from serving.endpoint import Endpoint

T = TypeVar("T")


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

    scored = list(_reported(endpoint.at_once(score, prompts), len(prompts), progress))
    return LabelScores(np.stack([scores for scores, _ in scored]), np.array([greedy for _, greedy in scored]))


def choose_by(
    endpoint: Endpoint, prompts: Sequence[str], labels: Sequence[str], most: int, progress: Progress = quiet
) -> tuple[list[str], list[str]]:
    """The constrained answers to the prompts, and those without the constraint, of at most so many tokens.

    Raises:
        NoLabelError: the server does not constrain its answers. LaunchError: it cannot be reached.
    """

    def ask(prompt: str) -> tuple[str, str]:
        return endpoint.choose(prompt, labels).label, endpoint.free_answer(prompt, most)

    answers = list(_reported(endpoint.at_once(ask, prompts), len(prompts), progress))
    return [chosen for chosen, _ in answers], [free for _, free in answers]


def _reported(results: Iterator[T], total: int, progress: Progress) -> Iterator[T]:
    for done, result in enumerate(results, 1):
        progress(Done("tickets", done, total))
        yield result
