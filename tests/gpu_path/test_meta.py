"""The real models at full size: what their checkpoints must hold is what the importer writes."""

from __future__ import annotations

import pytest

from tests.gpu_path.conftest import Results

pytestmark = [pytest.mark.slow, pytest.mark.foreign, pytest.mark.timeout(1000)]  # the first test waits for all checks


@pytest.mark.parametrize(
    ("name", "parameters", "states"),
    # a layer has 4 states and 2 an expert; one more is the last norm's
    [("gpt-oss-20b", 20_914_757_184, 24 * (4 + 2 * 32) + 1), ("gpt-oss-120b", 116_829_156_672, 36 * (4 + 2 * 128) + 1)],
)
def test_a_real_model_asks_for_no_key_that_is_not_written(
    results: Results, name: str, parameters: int, states: int
) -> None:
    """25 keys were missing for the 20b and 37 for the 120b."""
    found = results["meta"][name]
    assert found["parameters"] == parameters
    assert found["tensors"] == [16, []]
    assert found["states"] == [states, []]


@pytest.mark.parametrize(
    ("name", "gigabytes", "states"), [("gpt-oss-20b", 13.76, 24 * 4 + 1), ("gpt-oss-120b", 65.25, 36 * 4 + 1)]
)
def test_packed_experts_take_a_third(results: Results, name: str, gigabytes: float, states: int) -> None:
    """Of 41.8 and 233.7 GB; two tensors take each expert matrix's place, and none has an extra state."""
    found, plain = results["meta"][f"{name} mxfp4"], results["meta"][name]
    assert plain["bytes"] == pytest.approx(2 * plain["parameters"], rel=1e-4)  # and the rotary frequencies
    assert found["bytes"] / 1e9 == pytest.approx(gigabytes, abs=0.005)
    assert found["tensors"] == [18, []]
    assert found["states"] == [states, []]
