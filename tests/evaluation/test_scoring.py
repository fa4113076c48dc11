"""Decoding constrained to the labels against brute force: one label and one prompt at a time, without padding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.progress import Done
from data_prep.prepared import load_prepared
from evaluation.scoring import LabelScores, LogitsFunction, decode_labels
from evaluation.transformers_model import load
from tests.evaluation.conftest import LABELS, ticket_rows

# 42 hierarchical queues, as one of the Kaggle files has them.
HIERARCHY = [f"{a}::{b}" for a in ("IT", "Sales", "Sales Return", "HR", "Ops", "Help") for b in "ABCDEF"]
HIERARCHY += ["IT", "Sales", "HR", "Ops", "Help", "Sales Return"]


@pytest.fixture(scope="module")
def model(hf_folder: Path) -> tuple[LogitsFunction, Any]:
    return load(hf_folder)


def brute_force(logits: LogitsFunction, tokenizer: Any, prompt: str, completion: str) -> float:
    start = tokenizer.encode(prompt, add_special_tokens=False)
    answer = tokenizer.encode(completion, add_special_tokens=False)
    rows = logits(torch.tensor([start + answer]))[0].double()
    total = 0.0
    for position, token in enumerate(answer, len(start) - 1):
        total += float(rows[position, token] - torch.logsumexp(rows[position], 0))
    return total


def free_answer(logits: LogitsFunction, tokenizer: Any, prompt: str, most: int) -> list[int]:
    tokens, answer = tokenizer.encode(prompt, add_special_tokens=False), []
    while len(answer) < most and (not answer or answer[-1] != tokenizer.eos_token_id):
        answer.append(int(logits(torch.tensor([tokens + answer]))[0, -1].argmax()))
    return answer


@pytest.mark.parametrize("labels", [LABELS, HIERARCHY], ids=["prefixes", "hierarchy of 42"])
def test_equals_brute_force(model: tuple[LogitsFunction, Any], labels: list[str]) -> None:
    logits, tokenizer = model
    prompts = [row["input"] for row in ticket_rows(2, seed=5)]
    completions = [label + "<|return|>" for label in labels]
    scores = decode_labels(logits, tokenizer, prompts, completions, batch_size=2)
    expected = [[brute_force(logits, tokenizer, prompt, text) for text in completions] for prompt in prompts]
    assert len({len(tokenizer.encode(prompt)) for prompt in prompts}) > 1, "batches must need padding"
    np.testing.assert_allclose(scores.log_probabilities, expected, rtol=1e-6, atol=2e-5)
    np.testing.assert_array_equal(scores.best, np.argmax(expected, axis=1))
    np.testing.assert_allclose(scores.probabilities.sum(axis=1), 1)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_batch_size_changes_nothing(
    model: tuple[LogitsFunction, Any], prepared_folder: Path, batch_size: int
) -> None:
    prepared = load_prepared(prepared_folder)
    prompts, completions = [t.input for t in prepared.test], list(prepared.completions.values())
    one = decode_labels(*model, prompts, completions, batch_size=3)
    other = decode_labels(*model, prompts, completions, batch_size=batch_size)
    np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, rtol=1e-6, atol=2e-5)


def test_greedy_is_what_free_decoding_answers(model: tuple[LogitsFunction, Any]) -> None:
    """A model is bent towards some labels by hand; the answers of a step-by-step loop are the reference."""
    logits, tokenizer = model
    prompts = [row["input"] for row in ticket_rows(8, seed=6)]
    answers = [tokenizer.encode(label + "<|return|>", add_special_tokens=False) for label in LABELS]
    starts = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    wanted = [0, 1, None, 3, 4, None, 5, 2]

    def bent(tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        values = logits(tokens).clone()
        for row, sequence in enumerate(tokens.tolist()):
            index = next(i for i, start in enumerate(starts) if sequence[: len(start)] == start)
            label = wanted[index]
            if label is None:
                values[row, :, answers[1][0]] += 50  # repeats the first token of a label: valid start, no label
                continue
            path = answers[label]
            for position in range(len(path)):
                if sequence[len(starts[index]) :][:position] == path[:position]:
                    at = len(starts[index]) + position - 1
                    if at < values.shape[1]:
                        values[row, at, path[position]] += 50
        return values if positions is None else values[torch.arange(len(tokens))[:, None], positions]

    scores = decode_labels(bent, tokenizer, prompts, [label + "<|return|>" for label in LABELS], batch_size=3)
    free = [free_answer(bent, tokenizer, prompt, most=40) for prompt in prompts]
    expected = [answers.index(answer) if answer in answers else -1 for answer in free]
    assert scores.greedy.tolist() == expected == [-1 if label is None else label for label in wanted]


def test_one_pass_serves_labels_that_share_all_but_their_last_token() -> None:
    passes: list[tuple[int, ...]] = []

    class Letters:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [ord(c) - ord("a") for c in text]

    def uniform(tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        passes.append(tuple(tokens.shape))
        assert positions is not None
        return torch.zeros(*positions.shape, 26)

    seen: list[Done] = []
    scores = decode_labels(
        uniform,
        Letters(),
        ["xy", "z"],
        ["abc", "abd", "ab", "q"],
        2,
        progress=seen.append,
    )
    assert passes == [(2, 4)]
    assert seen == [Done("tickets", 2, 2)]
    np.testing.assert_allclose(scores.log_probabilities, -np.log(26) * np.array([[3, 3, 2, 1]] * 2))


def test_probabilities_of_very_unlikely_labels_stay_finite() -> None:
    scores = LabelScores(np.array([[-2000.0, -2001.0]]), np.array([-1]))
    np.testing.assert_allclose(scores.probabilities, [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]])
