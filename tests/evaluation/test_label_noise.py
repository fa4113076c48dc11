import numpy as np
import pytest

from evaluation.label_noise import estimate_noise

LABELS = ["Billing", "IT", "Sales", "unused"]


def noisy(tickets: int, flipped: int, seed: int = 0) -> tuple[list[str], list[str], np.ndarray]:
    """Gold labels of which `flipped` are wrong, the true ones, and a good model's probabilities of the true ones."""
    random = np.random.default_rng(seed)
    true = random.integers(0, 3, tickets)
    given = true.copy()
    wrong = random.choice(tickets, flipped, replace=False)
    given[wrong] = (given[wrong] + random.integers(1, 3, flipped)) % 3
    logits = random.normal(0, 0.5, (tickets, 4))
    logits[np.arange(tickets), true] += 3
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return [LABELS[i] for i in given], [LABELS[i] for i in true], probabilities


def test_finds_labels_that_were_flipped() -> None:
    given, true, probabilities = noisy(600, flipped=90)
    found = estimate_noise(given, LABELS, probabilities)
    assert found.tickets == 600
    assert found.rate == pytest.approx(0.15, abs=0.03)
    assert found.accuracy_ceiling == pytest.approx(1 - found.rate)
    assert found.macro_f1_ceiling == pytest.approx(0.85, abs=0.03)
    right = [suspect for suspect in found.suspects if true[suspect.index] != suspect.given]
    assert len(right) >= 80
    assert len(right) / len(found.suspects) >= 0.9
    assert all(suspect.suggested == true[suspect.index] for suspect in right[:20])
    qualities = [suspect.quality for suspect in found.suspects]
    assert qualities == sorted(qualities)


def test_clean_labels_raise_no_alarm() -> None:
    given, _, probabilities = noisy(600, flipped=0)
    found = estimate_noise(given, LABELS, probabilities)
    assert found.rate < 0.02
    assert len(found.suspects) < 12


def test_one_label_alone_has_nothing_to_be_confused_with() -> None:
    found = estimate_noise(["IT"] * 5, LABELS, np.full((5, 4), 0.25))
    assert (found.rate, found.accuracy_ceiling, found.suspects) == (0.0, 1.0, [])
