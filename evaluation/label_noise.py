"""How far the dataset's own labels can be trusted, by confident learning (cleanlab)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Suspect:
    """A ticket whose label looks wrong; `quality` is the model's probability of the given label, low is suspicious."""

    index: int
    given: str
    suggested: str
    quality: float


@dataclass(frozen=True)
class LabelNoise:
    """An estimate of the share of wrong labels, and what it means for every figure measured against them.

    Attributes:
        rate: share of the labels that are wrong.
        accuracy_ceiling, macro_f1_ceiling: what a router without fault would reach against the given labels.
        suspects: most suspicious first.
    """

    tickets: int
    rate: float
    accuracy_ceiling: float
    macro_f1_ceiling: float
    suspects: list[Suspect]


def estimate_noise(gold: Sequence[str], labels: Sequence[str], probabilities: np.ndarray) -> LabelNoise:
    """Estimate label noise from a model's probabilities for tickets that it was not trained on.

    Args:
        labels: the label set, in the order of the columns of `probabilities`.
        probabilities: (N, labels), rows sum to 1.
    Source: Northcutt et al., Confident Learning, 2021; the ceilings are accuracy and macro-F1 of the true label as a
        prediction of the given one, from the estimated joint distribution of both.
    """
    from cleanlab.count import estimate_joint
    from cleanlab.filter import find_label_issues

    # labels that no ticket has cannot be estimated: cleanlab wants each class to occur
    present = [i for i, label in enumerate(labels) if label in set(gold)]
    names = [labels[i] for i in present]
    found = probabilities[:, present]
    found = found / found.sum(axis=1, keepdims=True)
    given = np.array([names.index(label) for label in gold])
    if len(names) < 2:
        return LabelNoise(len(given), 0.0, 1.0, 1.0, [])
    joint = np.asarray(estimate_joint(given, found))  # (given, true), sums to 1
    ranked = find_label_issues(given, found, return_indices_ranked_by="self_confidence", n_jobs=1)
    suspects = [
        Suspect(int(i), names[given[i]], names[int(found[i].argmax())], float(found[i, given[i]])) for i in ranked
    ]
    right = float(np.trace(joint))
    f1 = 2 * np.diag(joint) / (joint.sum(axis=0) + joint.sum(axis=1))
    return LabelNoise(len(given), 1 - right, right, float(f1.mean()), suspects)
