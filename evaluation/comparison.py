"""Compare two systems on the same tickets: the gain of the second over the first, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.metrics import Interval, Resampled, interval


@dataclass(frozen=True)
class Comparison:
    """The second system minus the first; intervals are 95 % percentile bootstrap, both systems on the same resamples.

    Attributes:
        gained, lost: tickets that only the second, only the first routes rightly.
        p_value: McNemar's exact two-sided test that both are equally often right.
    """

    gained: int
    lost: int
    p_value: float
    accuracy: float
    accuracy_interval: Interval
    macro_f1: float
    macro_f1_interval: Interval


def compare(gold: Sequence[str], before: Sequence[str], after: Sequence[str], seed: int = 0) -> Comparison:
    """Compare two systems' predictions, ticket by ticket in the same order as `gold`."""
    from scipy.stats import binomtest
    from sklearn.metrics import f1_score

    truth, first, second = np.asarray(gold), np.asarray(before), np.asarray(after)
    labels = np.unique(truth)
    gained = int(((first != truth) & (second == truth)).sum())
    lost = int(((first == truth) & (second != truth)).sum())
    macro = [f1_score(truth, guess, labels=labels, average="macro", zero_division=0) for guess in (first, second)]  # type: ignore[arg-type]
    # the same seed draws the same tickets for both systems, which pairs the resamples
    old, new = Resampled.draw(truth, first, seed), Resampled.draw(truth, second, seed)
    return Comparison(
        gained=gained,
        lost=lost,
        p_value=float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
        accuracy=(gained - lost) / len(truth),
        accuracy_interval=interval(new.accuracy - old.accuracy),
        macro_f1=float(macro[1] - macro[0]),
        macro_f1_interval=interval(new.macro_f1 - old.macro_f1),
    )
