import numpy as np
import pytest

from data_prep.prepared import Ticket
from evaluation.label_noise import estimate_noise, noise_of_training
from tests.evaluation.conftest import ticket_rows

LABELS = ["Billing", "IT", "Sales"]


def ticket(number: int, label: str, text: str = "") -> Ticket:
    return Ticket(str(number), "", "", label, "en", text)


def noisy(tickets: int, flipped: int, seed: int = 0) -> tuple[list[Ticket], list[str], np.ndarray]:
    """Tickets of which `flipped` have a wrong label, the true labels, and a good model's probabilities of those."""
    random = np.random.default_rng(seed)
    true = random.integers(0, 3, tickets)
    given = true.copy()
    wrong = random.choice(tickets, flipped, replace=False)
    given[wrong] = (given[wrong] + random.integers(1, 3, flipped)) % 3
    logits = random.normal(0, 0.5, (tickets, 3))
    logits[np.arange(tickets), true] += 3
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return [ticket(i, LABELS[label]) for i, label in enumerate(given)], [LABELS[i] for i in true], probabilities


def test_finds_labels_that_were_flipped() -> None:
    tickets, true, probabilities = noisy(600, flipped=90)
    found = estimate_noise(tickets, LABELS, probabilities)
    assert found.tickets == 600
    assert found.rate == pytest.approx(0.15, abs=0.03)
    assert found.accuracy_ceiling == pytest.approx(1 - found.rate)
    assert found.macro_f1_ceiling == pytest.approx(0.85, abs=0.03)
    assert found.suspicious == pytest.approx(90, abs=12)
    right = [suspect for suspect in found.suspects if true[int(suspect.id)] != suspect.given]
    assert len(found.suspects) == 50
    assert len(right) >= 47
    assert all(suspect.suggested == true[int(suspect.id)] for suspect in right[:20])
    qualities = [suspect.quality for suspect in found.suspects]
    assert qualities == sorted(qualities)


def test_clean_labels_raise_no_alarm() -> None:
    tickets, _, probabilities = noisy(600, flipped=0)
    found = estimate_noise(tickets, LABELS, probabilities)
    assert found.rate < 0.02
    assert found.suspicious < 12


def test_training_tickets_are_judged_by_models_that_have_not_seen_them() -> None:
    """Words tell the label of every ticket but the flipped ones; a label with one ticket is left out."""
    tickets = [ticket(i, row["label"], row["ticket"]) for i, row in enumerate(ticket_rows(240, seed=3))]
    flipped = {7: "Sales", 100: "IT", 201: "Human Resources"}
    tickets = [ticket(i, flipped.get(i, t.label), t.text) for i, t in enumerate(tickets)]
    found = noise_of_training([*tickets, ticket(999, "rare", "once")])
    assert found is not None
    assert found.tickets == 240
    assert {int(suspect.id) for suspect in found.suspects} == set(flipped)
    assert found.rate == pytest.approx(3 / 240, abs=0.01)
    assert noise_of_training([t for t in tickets if t.label == "IT"]) is None
