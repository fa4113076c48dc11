"""Figures against scikit-learn, scipy and statsmodels on random cases; intervals by their coverage."""

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk
from statsmodels.stats.contingency_tables import mcnemar

from evaluation.calibration import calibrate, coverage_curve, point_for_coverage, point_for_precision
from evaluation.comparison import compare
from evaluation.metrics import Resampled, compute_metrics, interval

NO_DIVISION: dict[str, Any] = {"zero_division": 0}
"""For scikit-learn, whose default "warn" type checkers take for the type."""
NAMES = np.array(["Billing", "IT", "Sales", "Human Resources", "never given"])


def draw(seed: int, tickets: int = 120, right: float = 0.7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gold labels (four, unequally often), predictions (five) that agree with them at the rate `right`, languages."""
    random = np.random.default_rng(seed)
    gold = NAMES[random.choice(4, tickets, p=[0.5, 0.3, 0.15, 0.05])]
    guess = np.where(random.random(tickets) < right, gold, NAMES[random.integers(0, 5, tickets)])
    return gold, guess, np.array(["en", "de", "pt"])[random.integers(0, 3, tickets)]


@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_scikit_learn(seed: int) -> None:
    gold, guess, languages = draw(seed)
    found = compute_metrics(list(gold), list(guess), list(languages))
    labels = sorted(set(gold))
    assert found.tickets == 120
    assert found.accuracy == pytest.approx(sk.accuracy_score(gold, guess))
    assert found.micro_f1 == pytest.approx(sk.f1_score(gold, guess, average="micro"))
    assert found.macro_f1 == pytest.approx(sk.f1_score(gold, guess, labels=labels, average="macro"))
    assert found.weighted_f1 == pytest.approx(sk.f1_score(gold, guess, labels=labels, average="weighted"))
    report: Any = sk.classification_report(gold, guess, output_dict=True, **NO_DIVISION)
    assert list(found.per_label) == labels
    for label, figures in found.per_label.items():
        expected = report[label]
        assert figures.tickets == expected["support"]
        assert (figures.precision, figures.recall, figures.f1) == pytest.approx(
            (expected["precision"], expected["recall"], expected["f1-score"])
        )
        assert figures.f1_interval[0] <= figures.f1 <= figures.f1_interval[1]
    for language, figures in found.per_language.items():
        mine = languages == language
        there = sorted(set(gold[mine]))
        assert figures.tickets == mine.sum()
        assert figures.accuracy == pytest.approx((gold == guess)[mine].mean())
        assert figures.macro_f1 == pytest.approx(sk.f1_score(gold[mine], guess[mine], labels=there, average="macro"))


def test_each_resample_equals_scikit_learn() -> None:
    """The resamples are drawn again by the same generator and handed to scikit-learn ticket by ticket."""
    gold, guess, _ = draw(9, tickets=40)
    found = Resampled.draw(gold, guess, seed=3, resamples=25)
    weights = np.random.default_rng(3).multinomial(40, np.full(40, 1 / 40), size=25)
    for i, times in enumerate(weights):
        truth, answer = np.repeat(gold, times), np.repeat(guess, times)
        present = sorted(set(truth))
        assert found.accuracy[i] == pytest.approx(sk.accuracy_score(truth, answer))
        assert found.macro_f1[i] == pytest.approx(sk.f1_score(truth, answer, labels=present, average="macro"))
        assert found.weighted_f1[i] == pytest.approx(sk.f1_score(truth, answer, labels=present, average="weighted"))


def test_interval_of_accuracy_is_near_the_binomial_one() -> None:
    gold, guess, languages = draw(1, tickets=800)
    low, high = compute_metrics(list(gold), list(guess), list(languages)).accuracy_interval
    expected = stats.binomtest(int((gold == guess).sum()), 800).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.008)


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """200 data sets from one distribution; its own figures come from 400,000 tickets."""
    gold, guess, _ = draw(0, tickets=400_000)
    accuracy = float((gold == guess).mean())
    macro = float(sk.f1_score(gold, guess, labels=sorted(set(gold)), average="macro"))
    inside = np.zeros(2)
    for seed in range(200):
        gold, guess, _ = draw(1000 + seed, tickets=400)
        found = Resampled.draw(gold, guess, seed)
        for i, (truth, values) in enumerate(((accuracy, found.accuracy), (macro, found.macro_f1))):
            low, high = interval(values)
            inside[i] += low <= truth <= high
    # two standard errors of a 95 % rate in 200 trials are 3 points; percentile intervals are a little short
    assert np.all(inside / 200 >= 0.90), inside / 200
    assert np.all(inside / 200 <= 0.99), inside / 200


@pytest.mark.parametrize("seed", range(3))
def test_mcnemar_equals_statsmodels(seed: int) -> None:
    gold, before, _ = draw(seed, right=0.5)
    _, after, _ = draw(seed, right=0.65)
    found = compare(list(gold), list(before), list(after))
    first, second = before == gold, after == gold
    table = [[(first & second).sum(), (first & ~second).sum()], [(~first & second).sum(), (~first & ~second).sum()]]
    assert (found.lost, found.gained) == (table[0][1], table[1][0])
    expected: Any = mcnemar(table, exact=True)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.accuracy == pytest.approx(second.mean() - first.mean())
    labels = sorted(set(gold))
    macros = [sk.f1_score(gold, guess, labels=labels, average="macro") for guess in (before, after)]
    assert found.macro_f1 == pytest.approx(macros[1] - macros[0])


def test_pairing_shortens_the_interval_of_a_difference() -> None:
    gold, before, _ = draw(2, tickets=400)
    after = before.copy()
    after[:12] = gold[:12]  # the second system is the first with a few more right
    found = compare(list(gold), list(before), list(after))
    assert found.lost == 0
    paired = found.accuracy_interval[1] - found.accuracy_interval[0]
    low, high = compute_metrics(list(gold), list(before), ["en"] * 400).accuracy_interval
    assert paired < (high - low) / 2
    assert compare(list(gold), list(before), list(before)).p_value == 1.0
    assert compare(list(gold), list(before), list(before)).macro_f1_interval == (0.0, 0.0)


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.05, 0.1, 0.55, 0.58, 0.95, 1.0, 1.0])
    correct = np.array([False, False, True, False, True, True, False])
    found = calibrate(confidence, correct)
    assert [(b.tickets, round(b.low, 1), round(b.high, 1)) for b in found.bins] == [
        (2, 0.0, 0.1),
        (2, 0.5, 0.6),
        (3, 0.9, 1.0),
    ]
    expected = (2 * abs(0.075 - 0) + 2 * abs(0.565 - 0.5) + 3 * abs(2.95 / 3 - 2 / 3)) / 7
    assert found.ece == pytest.approx(expected)


def test_calibration_error_of_a_calibrated_model_is_small() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.2, 1, 20_000)
    correct = random.random(20_000) < confidence
    assert calibrate(confidence, correct).ece < 0.015
    assert calibrate(np.minimum(confidence + 0.2, 1), correct).ece > 0.1


def test_thresholds_route_equal_confidences_together() -> None:
    confidence = np.array([0.9, 0.8, 0.8, 0.6, 0.5])
    correct = np.array([True, True, False, True, False])
    thresholds, coverages, precisions = coverage_curve(confidence, correct)
    assert thresholds.tolist() == [0.9, 0.8, 0.6, 0.5]
    assert coverages.tolist() == pytest.approx([0.2, 0.6, 0.8, 1.0])
    assert precisions.tolist() == pytest.approx([1, 2 / 3, 3 / 4, 3 / 5])
    point = point_for_precision(confidence, correct, 0.7)
    assert point is not None
    assert (point.threshold, point.coverage, point.precision) == pytest.approx((0.6, 0.8, 0.75))
    wilson = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert point.precision_interval == pytest.approx((wilson.low, wilson.high))
    assert point_for_precision(confidence, ~correct, 0.95) is None
    half = point_for_coverage(confidence, correct, 0.5)
    assert (half.threshold, half.coverage) == pytest.approx((0.8, 0.6))
    assert point_for_coverage(confidence, correct, 1.0).coverage == 1
