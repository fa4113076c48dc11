"""Whether a model's confidence can be trusted, and what can be routed without a person on the strength of it.

Confidence is the probability of the best label, among the label set only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.metrics import Interval

BINS = 10


@dataclass(frozen=True)
class Bin:
    """A bin of tickets by confidence: their number, mean confidence and accuracy."""

    low: float
    high: float
    tickets: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error over bins of equal width, and the bins that hold tickets."""

    ece: float
    bins: list[Bin]


@dataclass(frozen=True)
class OperatingPoint:
    """Route tickets at or above `threshold`, hand the rest to a person.

    Attributes:
        coverage: share of the tickets that are routed.
        precision: share of those that are routed rightly, with Wilson's 95 % interval.
    """

    threshold: float
    coverage: float
    precision: float
    precision_interval: Interval


def calibrate(confidence: np.ndarray, correct: np.ndarray) -> Calibration:
    """Compare confidence (N,) in 0..1 with what was right (N,), bool; bins include their upper edge.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3.
    """
    edges = np.linspace(0, 1, BINS + 1)
    places = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, BINS - 1)
    bins, error = [], 0.0
    for place in np.unique(places):
        inside = places == place
        mean, right = float(confidence[inside].mean()), float(correct[inside].mean())
        bins.append(Bin(float(edges[place]), float(edges[place + 1]), int(inside.sum()), mean, right))
        error += inside.mean() * abs(mean - right)
    return Calibration(float(error), bins)


def coverage_curve(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds, falling, with the coverage and the precision that each gives: three arrays, one entry a threshold."""
    order = np.argsort(-confidence, kind="stable")
    sure, hits = confidence[order], np.cumsum(correct[order])
    last = np.flatnonzero(np.append(np.diff(sure) != 0, True))  # equal confidences are routed together
    routed = last + 1
    return sure[last], routed / len(sure), hits[last] / routed


def point_for_precision(confidence: np.ndarray, correct: np.ndarray, wanted: float) -> OperatingPoint | None:
    """The threshold that routes most tickets at a precision of at least `wanted`; None where none does."""
    thresholds, coverages, precisions = coverage_curve(confidence, correct)
    good = np.flatnonzero(precisions >= wanted)
    return _point(thresholds, coverages, precisions, int(good[-1]), len(confidence)) if len(good) else None


def point_for_coverage(confidence: np.ndarray, correct: np.ndarray, wanted: float) -> OperatingPoint:
    """The highest threshold that routes at least the share `wanted` of the tickets."""
    thresholds, coverages, precisions = coverage_curve(confidence, correct)
    first = int(np.searchsorted(coverages, wanted - 1e-12))
    return _point(thresholds, coverages, precisions, first, len(confidence))


def _point(
    thresholds: np.ndarray, coverages: np.ndarray, precisions: np.ndarray, at: int, tickets: int
) -> OperatingPoint:
    from scipy.stats import binomtest

    routed = round(coverages[at] * tickets)
    interval = binomtest(round(precisions[at] * routed), routed).proportion_ci(method="wilson")
    limits = (float(interval.low), float(interval.high))
    return OperatingPoint(float(thresholds[at]), float(coverages[at]), float(precisions[at]), limits)
