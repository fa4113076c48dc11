"""Classification figures with bootstrap intervals; scikit-learn computes each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import f1_score

RESAMPLES = 1000
Interval = tuple[float, float]


@dataclass(frozen=True)
class Metrics:
    """Figures of one system on one split; intervals are 95 % percentile bootstrap over tickets."""

    tickets: int
    accuracy: float
    micro_f1: float
    macro_f1: float
    weighted_f1: float
    micro_f1_interval: Interval
    macro_f1_interval: Interval
    per_label: dict[str, float]
    per_language: dict[str, float]


def compute_metrics(gold: Sequence[str], predicted: Sequence[str], languages: Sequence[str], seed: int = 0) -> Metrics:
    """All figures; macro is the mean over the labels that occur in `gold`, per_language is macro-F1."""
    labels = sorted(set(gold))
    truth, guess = np.asarray(gold), np.asarray(predicted)

    def f1(average: str | None, keep: np.ndarray | slice = slice(None)) -> np.ndarray:
        names = sorted(set(truth[keep]))
        return f1_score(truth[keep], guess[keep], labels=names, average=average, zero_division=0)  # type: ignore[arg-type,return-value]

    spoken = np.asarray(languages)
    accuracy = float((truth == guess).mean())
    random = np.random.default_rng(seed)
    samples = random.integers(0, len(truth), (RESAMPLES, len(truth)))
    accuracies = (truth == guess)[samples].mean(axis=1)
    macros = _macro_f1(truth, guess, labels, samples)
    return Metrics(
        tickets=len(truth),
        accuracy=accuracy,
        # every ticket has one label and gets one prediction, so micro-F1 over all labels is the accuracy
        micro_f1=accuracy,
        macro_f1=float(f1("macro")),
        weighted_f1=float(f1("weighted")),
        micro_f1_interval=_interval(accuracies),
        macro_f1_interval=_interval(macros),
        per_label=dict(zip(labels, map(float, f1(None)), strict=True)),
        per_language={name: float(f1("macro", spoken == name)) for name in sorted(set(spoken))},
    )


def _macro_f1(truth: np.ndarray, guess: np.ndarray, labels: list[str], samples: np.ndarray) -> np.ndarray:
    """Macro-F1 of each resample, over the labels that occur in it: 2·tp / (2·tp + fp + fn)."""
    totals, occurring = np.zeros(len(samples)), np.zeros(len(samples))
    for label in labels:
        is_true, is_guess = (truth == label)[samples], (guess == label)[samples]
        hits = (is_true & is_guess).sum(axis=1)
        both = is_true.sum(axis=1) + is_guess.sum(axis=1)
        present = is_true.any(axis=1)
        totals += np.where(present, 2 * hits / np.maximum(both, 1), 0)
        occurring += present
    return totals / occurring


def _interval(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
