"""The answers of all labels as a tree of tokens: what is alike at their beginnings is asked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelTree:
    """Answers of tokens, each with an end token of its own, so that none is the beginning of another.

    Attributes:
        answers: tokens of each.
        stems: every beginning of an answer but the whole, the empty one first: after each of them a model is asked.
        tokens: every token that stands in an answer, rising.
    """

    answers: list[list[int]]
    stems: list[tuple[int, ...]]
    tokens: list[int]

    @classmethod
    def of(cls, answers: Sequence[list[int]]) -> LabelTree:
        stems = {tuple(answer[:size]) for answer in answers for size in range(len(answer))}
        tokens = {token for answer in answers for token in answer}
        return cls([list(answer) for answer in answers], sorted(stems, key=lambda s: (len(s), s)), sorted(tokens))

    def scores(self, log_probabilities: np.ndarray, best: Sequence[int]) -> tuple[np.ndarray, int]:
        """Sums along the answers, (answers,), and which answer is the best token at each of its steps, -1 for none.

        Args:
            log_probabilities: of `tokens` after each of `stems`, (stems, tokens).
            best: the likeliest token of all after each stem.
        """
        row = {stem: place for place, stem in enumerate(self.stems)}
        column = {token: place for place, token in enumerate(self.tokens)}
        scores, greedy = np.zeros(len(self.answers)), -1
        for i, answer in enumerate(self.answers):
            steps = [(row[tuple(answer[:size])], token) for size, token in enumerate(answer)]
            scores[i] = sum(log_probabilities[stem, column[token]] for stem, token in steps)
            if all(best[stem] == token for stem, token in steps):
                greedy = i
        return scores, greedy
