"""Classification figures with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

RESAMPLES = 1000
LEVEL = 0.95
Interval = tuple[float, float]


@dataclass(frozen=True)
class LabelMetrics:
    """Figures of one label; `tickets` have it as their gold label."""

    tickets: int
    precision: float
    recall: float
    f1: float
    f1_interval: Interval


@dataclass(frozen=True)
class LanguageMetrics:
    """Figures of the tickets in one language."""

    tickets: int
    accuracy: float
    accuracy_interval: Interval
    macro_f1: float
    macro_f1_interval: Interval


@dataclass(frozen=True)
class Metrics:
    """Figures of one system on one split; intervals are 95 % percentile bootstrap over tickets.

    Every ticket has one label and gets one prediction, so micro-F1 over all labels is the accuracy. Macro and weighted
    F1 are over the labels that occur in the split (in a resample: that occur in it).
    """

    tickets: int
    accuracy: float
    micro_f1: float
    macro_f1: float
    weighted_f1: float
    accuracy_interval: Interval
    micro_f1_interval: Interval
    macro_f1_interval: Interval
    weighted_f1_interval: Interval
    per_label: dict[str, LabelMetrics]
    per_language: dict[str, LanguageMetrics]


def compute_metrics(gold: Sequence[str], predicted: Sequence[str], languages: Sequence[str], seed: int = 0) -> Metrics:
    """All figures of one system's predictions, ticket by ticket in the same order as `gold`."""
    spoken = np.asarray(languages)
    truth, guess = np.asarray(gold), np.asarray(predicted)
    whole = Resampled.draw(truth, guess, seed)
    labels = [str(label) for label in whole.labels]
    precision, recall, f1, counts = (
        np.asarray(figures)
        for figures in precision_recall_fscore_support(truth, guess, labels=labels, zero_division=0)  # type: ignore[arg-type]
    )
    f1_intervals = [interval(values) for values in whole.f1.T]
    return Metrics(
        tickets=len(truth),
        accuracy=float((truth == guess).mean()),
        micro_f1=float((truth == guess).mean()),
        macro_f1=float(f1.mean()),
        weighted_f1=float(np.average(f1, weights=counts)),
        accuracy_interval=interval(whole.accuracy),
        micro_f1_interval=interval(whole.accuracy),
        macro_f1_interval=interval(whole.macro_f1),
        weighted_f1_interval=interval(whole.weighted_f1),
        per_label={
            label: LabelMetrics(int(counts[i]), float(precision[i]), float(recall[i]), float(f1[i]), f1_intervals[i])
            for i, label in enumerate(labels)
        },
        per_language={str(name): _of_language(truth, guess, spoken == name, seed) for name in np.unique(spoken)},
    )


def _of_language(truth: np.ndarray, guess: np.ndarray, keep: np.ndarray, seed: int) -> LanguageMetrics:
    truth, guess = truth[keep], guess[keep]
    resampled = Resampled.draw(truth, guess, seed)
    f1 = precision_recall_fscore_support(truth, guess, labels=resampled.labels, zero_division=0)[2]  # type: ignore[arg-type]
    return LanguageMetrics(
        tickets=len(truth),
        accuracy=float((truth == guess).mean()),
        accuracy_interval=interval(resampled.accuracy),
        macro_f1=float(np.mean(f1)),
        macro_f1_interval=interval(resampled.macro_f1),
    )


@dataclass(frozen=True)
class Resampled:
    """Counts of R bootstrap resamples of the tickets, for K labels.

    Attributes:
        labels: those that occur in the gold labels, (K,).
        hits, true, guessed: tickets that were rightly given a label, have it, were given it, (R, K).
    """

    labels: np.ndarray
    hits: np.ndarray
    true: np.ndarray
    guessed: np.ndarray

    @classmethod
    def draw(cls, truth: np.ndarray, guess: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Resampled:
        """Resample tickets with replacement; the same seed and number of tickets draw the same tickets."""
        labels = np.unique(truth)
        random = np.random.default_rng(seed)
        # how often each ticket is drawn, (R, N): counting is then a matrix product
        weights = random.multinomial(len(truth), np.full(len(truth), 1 / len(truth)), size=resamples).astype(np.float32)
        true, guessed = truth[:, None] == labels, guess[:, None] == labels
        counts = (weights @ which.astype(np.float32) for which in (true & guessed, true, guessed))
        return cls(labels, *counts)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of right answers in each resample, (R,)."""
        return self.hits.sum(axis=1) / self.true.sum(axis=1)

    @property
    def f1(self) -> np.ndarray:
        """F1 of each label in each resample, (R, K): 2·tp / (2·tp + fp + fn)."""
        return 2 * self.hits / np.maximum(self.true + self.guessed, 1)

    @property
    def macro_f1(self) -> np.ndarray:
        """Mean F1 of the labels that occur in each resample, (R,)."""
        present = self.true > 0
        return (self.f1 * present).sum(axis=1) / present.sum(axis=1)

    @property
    def weighted_f1(self) -> np.ndarray:
        """Mean F1 in each resample, weighted by the label's tickets, (R,)."""
        return (self.f1 * self.true).sum(axis=1) / self.true.sum(axis=1)


def interval(values: np.ndarray) -> Interval:
    """Percentile interval of bootstrap values (R,)."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
