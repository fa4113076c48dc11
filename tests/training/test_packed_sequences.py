"""Tickets packed into a sequence train as tickets in rows of their own do, through the real `llm.finetune`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.training.trainings import Done

pytestmark = pytest.mark.slow


def test_a_pack_trains_as_its_tickets_do_in_rows(
    trainings: dict[str, list[Done]], record_property: Callable[[str, object], None]
) -> None:
    """Two steps, with an update between them, over the same 21 tickets.

    Later ones are not: NeMo's rows of an epoch begin with the next epoch's (_OnlineSampleMapping draws from blocks that
    span them), where its packs are whole epochs.
    """
    rows, pack = trainings["few-in-rows"][-1], trainings["few-in-a-pack"][-1]
    assert (rows.status, pack.status) == (0, 0), pack.out
    assert "21 training" in pack.out
    expected, found = ([row for row in done.history() if "loss" in row] for done in (rows, pack))
    assert len(found) == 4
    assert found[0]["loss"] - found[1]["loss"] > 0.05, "what does not learn proves nothing"
    record_property("losses", max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(found[:2], expected[:2], strict=True)))
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in found[:2]] == pytest.approx([row[name] for row in expected[:2]], rel=1e-5)
