"""How likely a model finds each label after a prompt: decoding constrained to the label set, and exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from common.progress import Done, Progress, quiet


class LogitsFunction(Protocol):
    """A model's forward pass.

    Tokens int64 (B, S), padded on the right, give fp32 (B, S, V); with `positions`, int64 (B, K), only the logits
    there, (B, K, V): with a vocabulary of 200,000 the others would take more memory than the model's activations.
    """

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor: ...


@dataclass(frozen=True)
class LabelScores:
    """A model's scores of the labels after N prompts.

    Attributes:
        log_probabilities: of each label's whole completion, fp64 (N, labels).
        greedy: the label that unconstrained greedy decoding answers with, as its index, int64 (N,); -1 where the free
            answer is no label.
    """

    log_probabilities: np.ndarray
    greedy: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """Index of the most probable label, (N,)."""
        return self.log_probabilities.argmax(axis=1)

    @property
    def probabilities(self) -> np.ndarray:
        """Probabilities over the label set, (N, labels); rows sum to 1."""
        weights = np.exp(self.log_probabilities - self.log_probabilities.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)


def decode_labels(
    logits: LogitsFunction,
    tokenizer: Any,
    prompts: Sequence[str],
    completions: Sequence[str],
    batch_size: int,
    progress: Progress = quiet,
) -> LabelScores:
    """Score every completion after every prompt: the sum of the log-probabilities of its tokens.

    The completions form a trie; a forward pass over prompt + longest shared path serves all completions on that path,
    and the same passes say what greedy decoding without the constraint answers. Prompts are batched by length.

    Args:
        progress: receives the prompts done.
    """
    encoded = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    answers = [tokenizer.encode(completion, add_special_tokens=False) for completion in completions]
    paths = _paths(answers)
    scores = np.zeros((len(prompts), len(answers)))
    greedy = np.full(len(prompts), -1)
    done = 0
    for chosen in _batches([len(prompt) for prompt in encoded], batch_size):
        for path, labels in paths.items():
            log_probabilities = _log_probabilities(logits, [encoded[i] for i in chosen], path)
            top = log_probabilities.argmax(axis=2)
            for label in labels:
                answer = answers[label]
                scores[chosen, label] = log_probabilities[:, range(len(answer)), answer].sum(axis=1)
                greedy[chosen[(top[:, : len(answer)] == answer).all(axis=1)]] = label
        done += len(chosen)
        progress(Done("tickets", done, len(prompts)))
    return LabelScores(scores, greedy)


def save_scores(file: Path, scores: Mapping[str, LabelScores]) -> None:
    """Keep the scores of several systems, in numpy's .npz format."""
    arrays = {f"{name}/{part}": value for name, system in scores.items() for part, value in vars(system).items()}
    with file.open("wb") as kept:
        np.savez(kept, **arrays)  # type: ignore[arg-type]


def load_scores(file: Path) -> dict[str, LabelScores]:
    """The scores that `save_scores` kept, in the same order."""
    with np.load(file) as kept:
        names = [name.removesuffix("/greedy") for name in kept.files if name.endswith("/greedy")]
        return {name: LabelScores(kept[f"{name}/log_probabilities"], kept[f"{name}/greedy"]) for name in names}


def _batches(lengths: list[int], batch_size: int) -> Iterator[np.ndarray]:
    """Indices of prompts of about the same length, longest first: too large a batch shows at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    yield from (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def _paths(answers: list[list[int]]) -> dict[tuple[int, ...], list[int]]:
    """The trie's longest paths without their leaves; for each, the answers whose every token it predicts."""
    stems = sorted({tuple(answer[:-1]) for answer in answers}, key=len, reverse=True)
    paths: dict[tuple[int, ...], list[int]] = {}
    for stem in stems:
        if not any(longer[: len(stem)] == stem for longer in paths):
            paths[stem] = []
    for label, answer in enumerate(answers):
        paths[next(path for path in paths if path[: len(answer) - 1] == tuple(answer[:-1]))].append(label)
    return paths


def _log_probabilities(logits: LogitsFunction, prompts: list[list[int]], path: tuple[int, ...]) -> np.ndarray:
    """(B, len(path) + 1, V): the distribution after the prompt, and after each token of the path."""
    rows = [[*prompt, *path] for prompt in prompts]
    width = max(len(row) for row in rows)
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    positions = torch.tensor([len(prompt) - 1 for prompt in prompts])[:, None] + torch.arange(len(path) + 1)
    return torch.log_softmax(logits(tokens, positions).double(), dim=-1).numpy()
