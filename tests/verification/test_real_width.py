"""The proofs at full size, on the first two layers of gpt-oss-20b: its real width, vocabulary and tickets."""

from __future__ import annotations

import pytest

from tests.real_tickets import MAIN, real_tickets, real_vocabulary
from verification.full_run import prove
from verification.logits import compare
from verification.subject import Subject

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    vocabulary, tickets = real_vocabulary(), real_tickets(MAIN)
    return Subject("gpt-oss-20b", tmp_path_factory.mktemp("real"), vocabulary, tickets, layers=2)


@pytest.mark.timeout(900)
def test_logits_are_those_of_transformers(subject: Subject) -> None:
    found = compare(subject, tokens=400)
    assert 0 < found.difference <= 1e-4
    assert 0 < found.closest < 0.1


@pytest.mark.timeout(1500)
def test_a_run_is_killed_goes_on_and_is_exported(subject: Subject) -> None:
    proof = prove(subject, ("peft.expert_layers=[1]", "trainer.max_steps=4", "evaluation.max_tickets=1"))
    assert len(proof.losses) == 4
    assert proof.resumed == 3
    # two layers' attention (in and out) and one layer's experts (both matrices) of 2 * 13 + 3 tensors
    assert (proof.changed, proof.untouched) == (6, 23)
    assert 0.45 < proof.rounding <= 0.5
    assert proof.adapter == 2 * 2 * 4 + 4
