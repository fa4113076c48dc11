"""`modeling.attention` against Transformer Engine's own choice, over machines that differ in what matters."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu_path.conftest import Results

pytestmark = [pytest.mark.slow, pytest.mark.foreign, pytest.mark.timeout(1000)]  # the first test waits for all checks

REFUSED_BY_MEGATRON = " packed CP2"  # which cannot slice packed sequences, whatever Transformer Engine takes


@pytest.fixture(scope="session")
def cases(results: Results) -> list[dict[str, Any]]:
    return results["backends"]["cases"]


def test_we_choose_what_transformer_engine_takes(cases: list[dict[str, Any]]) -> None:
    """Fp32, an A100 and context parallelism got backends that there are not."""
    assert len(cases) == 4 * 5 * 2 * 2 * 2
    for case in cases:
        ours = "none" if case["ours"].startswith("refused") or case["ours"] == "local" else case["ours"]
        if not case["name"].endswith(REFUSED_BY_MEGATRON):
            assert case["theirs"] == [ours], case


def test_packing_with_context_parallelism_is_refused_everywhere(cases: list[dict[str, Any]]) -> None:
    both = [case["ours"] for case in cases if case["name"].endswith(REFUSED_BY_MEGATRON)]
    assert len(both) == 4 * 5 * 2
    assert all(text.startswith("refused: packed sequences cannot be split over 2 ranks") for text in both)


def test_every_answer_is_given_somewhere(cases: list[dict[str, Any]]) -> None:
    """A matrix in which one answer never comes would not tell a mistake from the truth."""
    kinds = [case["ours"].split(":")[0] for case in cases]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"fused": 36, "unfused": 24, "local": 36, "refused": 64}


def test_context_parallelism_from_rank_to_rank_has_no_backend(results: Results) -> None:
    assert results["backends"]["p2p"] == "none"


def test_the_health_check_says_the_same(results: Results) -> None:
    """It said "fused" without looking at the GPU's capability or at the precision."""
    lines = results["backends"]["health"]
    assert lines["(9, 0)"] == [
        "attention, bf16, packed: Transformer Engine's fused attention, with sinks",
        "attention, bf16: Transformer Engine's fused attention, with sinks",
        "attention, fp32: Transformer Engine's unfused attention, with sinks",
    ]
    assert lines["(8, 0)"][0] == "attention, bf16, packed: attention by torch, with sinks"
    assert lines["(8, 0)"][1:] == lines["(9, 0)"][1:]


def test_the_newest_transformer_engine_takes_what_we_choose(newest: dict[str, Any]) -> None:
    """Its library asks cuDNN itself, which needs a GPU: only its Python filters speak here, so it may refuse more."""
    assert newest["engine"] == "2.20.2"
    assert newest["p2p"] == "none"
    chosen = [case for case in newest["cases"] if case["ours"] in ("fused", "unfused")]
    assert len(chosen) == 36 + 24
    for case in chosen:
        assert case["theirs"] == [case["ours"]], case
