"""One system's answers to the tickets of a split, whatever the system is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.prepared import Ticket
from evaluation.scoring import LabelScores


@dataclass(frozen=True)
class Predictions:
    """Answers of a system to N tickets; every array has one row a ticket.

    Attributes:
        labels: the label set, in the order of the columns below.
        best: index of the predicted label, int64 (N,).
        log_probabilities: of each label's whole completion, natural logarithm, (N, labels); None for a system that
            gives none.
        probabilities: over the label set, (N, labels), rows sum to 1; None where the system gives none.
        valid: whether the answer without the constraint is a label, bool (N,); None for a system that has no other.
    """

    labels: list[str]
    best: np.ndarray
    log_probabilities: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    valid: np.ndarray | None = None

    @classmethod
    def of_model(cls, labels: Sequence[str], scores: LabelScores) -> Predictions:
        """Predictions from a language model's label scores."""
        return cls(list(labels), scores.best, scores.log_probabilities, scores.probabilities, scores.greedy >= 0)

    @property
    def answers(self) -> list[str]:
        """The predicted labels."""
        return [self.labels[i] for i in self.best]

    @property
    def confidence(self) -> np.ndarray | None:
        """Probability of the predicted label among the label set, (N,)."""
        return None if self.probabilities is None else self.probabilities[np.arange(len(self.best)), self.best]

    def correct(self, gold: Sequence[str]) -> np.ndarray:
        """Which predictions equal the gold labels, bool (N,)."""
        return np.array(self.answers) == np.array(gold)

    def rows(self, system: str, tickets: Sequence[Ticket]) -> Iterator[dict[str, Any]]:
        """One row of predictions.jsonl a ticket."""
        for i, ticket in enumerate(tickets):
            row: dict[str, Any] = {"system": system, "id": ticket.id, "language": ticket.language}
            row |= {"label": ticket.label, "prediction": self.labels[self.best[i]]}
            if self.valid is not None:
                row["free_answer_is_a_label"] = bool(self.valid[i])
            for name, values in (
                ("probabilities", self.probabilities),
                ("log_probabilities", self.log_probabilities),
            ):
                if values is not None:
                    row[name] = {label: round(float(x), 6) for label, x in zip(self.labels, values[i], strict=True)}
            yield row


Systems = Mapping[str, Predictions]
"""The systems of one evaluation by name, in the order of its tables."""
