"""The answers of all labels as a tree of tokens, so that a model is asked once for what they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Stem = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """What a model says after a stem: the token that it goes on with, and log-probabilities by token."""

    token: int
    log_probabilities: Mapping[int, float]


@dataclass(frozen=True)
class LabelTree:
    """Answers of tokens, each with an end token of its own, so that none is the beginning of another."""

    answers: list[list[int]]

    @cached_property
    def stems(self) -> list[Stem]:
        """Every beginning of an answer but the whole, the shortest first: what a model is asked after."""
        stems = {tuple(answer[:size]) for answer in self.answers for size in range(len(answer))}
        return sorted(stems, key=lambda stem: (len(stem), stem))

    @cached_property
    def tokens(self) -> list[int]:
        """Every token that stands in an answer, rising."""
        return sorted({token for answer in self.answers for token in answer})

    @cached_property
    def heads(self) -> list[Stem]:
        """The empty stem, and those that begin where answers part: a model that knows them goes on by itself."""
        after: dict[Stem, set[int]] = {stem: set() for stem in self.stems}
        for answer in self.answers:
            for size, token in enumerate(answer):
                after[tuple(answer[:size])].add(token)
        return [stem for stem in self.stems if not stem or len(after[stem[:-1]]) > 1]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest way from a head to the next, or to an end."""
        lengths, heads = [], set(self.heads)
        for answer in self.answers:
            places = [size for size in range(len(answer)) if tuple(answer[:size]) in heads]
            lengths += [end - start for start, end in zip(places, [*places[1:], len(answer)], strict=True)]
        return max(lengths)

    def scores(self, steps: Mapping[Stem, Step]) -> tuple[np.ndarray, int]:
        """Sums of log-probabilities along the answers, (answers,), and which of them the model goes, -1 for none."""
        scores, greedy = np.zeros(len(self.answers)), -1
        for i, answer in enumerate(self.answers):
            way = [(steps[tuple(answer[:size])], token) for size, token in enumerate(answer)]
            scores[i] = sum(step.log_probabilities[token] for step, token in way)
            if all(step.token == token for step, token in way):
                greedy = i
        return scores, greedy
