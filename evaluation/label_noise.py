"""How far the data's own labels can be trusted, by confident learning (cleanlab)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.prepared import Ticket
from evaluation.baselines import tfidf_model

FOLDS = 5
SHOWN = 50


@dataclass(frozen=True)
class Suspect:
    """A ticket whose label looks wrong; `quality` is the model's probability of the given label, low is suspicious."""

    id: str
    given: str
    suggested: str
    quality: float
    text: str


@dataclass(frozen=True)
class LabelNoise:
    """Estimate of the share of wrong labels, and of the accuracy that such labels allow at most.

    Attributes:
        tickets: those that the estimate is made from.
        rate: share of their labels that are wrong.
        accuracy_ceiling, macro_f1_ceiling: what a router without fault would reach against labels as noisy as these.
        suspicious: how many look wrong; `suspects` are the first of them, most suspicious first.
    """

    tickets: int
    rate: float
    accuracy_ceiling: float
    macro_f1_ceiling: float
    suspicious: int
    suspects: list[Suspect]


def noise_of_training(tickets: Sequence[Ticket]) -> LabelNoise | None:
    """Estimate the noise of the training labels with TF-IDF + logistic regression, each ticket by a model without it.

    Labels with fewer tickets than folds are left out. None where fewer than two labels are left.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    counts = Counter(ticket.label for ticket in tickets)
    labels = sorted(label for label, count in counts.items() if count >= FOLDS)
    kept = [ticket for ticket in tickets if ticket.label in labels]
    if len(labels) < 2:
        return None
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    gold = [ticket.label for ticket in kept]
    probabilities = cross_val_predict(
        tfidf_model(), np.array([t.text for t in kept], dtype=object), gold, cv=folds, method="predict_proba"
    )  # columns in the order of sorted labels
    return estimate_noise(kept, labels, np.asarray(probabilities))


def estimate_noise(tickets: Sequence[Ticket], labels: Sequence[str], probabilities: np.ndarray) -> LabelNoise:
    """Estimate label noise from probabilities by models that were not trained on the ticket in question.

    Args:
        labels: those of the tickets, each of which occurs, in the order of the columns of `probabilities`.
        probabilities: (N, labels), rows sum to 1.
    Source: Northcutt et al., Confident Learning, 2021; the ceilings are accuracy and macro-F1 of the true label as a
        prediction of the given one, from the estimated joint distribution of both.
    """
    from cleanlab.count import estimate_joint
    from cleanlab.filter import find_label_issues

    given = np.array([labels.index(ticket.label) for ticket in tickets])
    joint = np.asarray(estimate_joint(given, probabilities))  # (given, true), sums to 1
    ranked = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    suspects = [
        Suspect(
            tickets[i].id,
            tickets[i].label,
            labels[int(probabilities[i].argmax())],
            round(float(probabilities[i, given[i]]), 4),
            tickets[i].text,
        )
        for i in ranked[:SHOWN]
    ]
    right = float(np.trace(joint))
    f1 = 2 * np.diag(joint) / (joint.sum(axis=0) + joint.sum(axis=1))
    return LabelNoise(len(given), 1 - right, right, float(f1.mean()), len(ranked), suspects)
