"""Megatron-core's layer spec for GPUs, on Transformer Engine's code with its kernels emulated: one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.gpu_path.conftest import Results

pytestmark = [pytest.mark.slow, pytest.mark.foreign, pytest.mark.timeout(1000)]  # the first test waits for all checks

LAYERS = 3


@pytest.fixture(scope="session")
def model(results: Results) -> dict[str, Any]:
    return results["model"]


def test_the_modules_are_transformer_engines(model: dict[str, Any]) -> None:
    expected = {"TELayerNormColumnParallelLinear", "TERowParallelLinear", "TEDotProductAttention", "TEGroupedMLP"}
    assert expected <= set(model["spec"])


def test_an_imported_base_restores_strictly(model: dict[str, Any]) -> None:
    """The extra states of the two kinds of RMSNorm were not written."""
    assert model["strict"] == ""


def test_logits_are_those_of_transformers(
    model: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    record_property("logits", model["logits"])
    assert model["logits_std"] > 1
    assert model["logits"] < 1e-4
    assert model["evaluation"] < 1e-4, "by the function that evaluation uses"
    # each rounds for itself in fp32: `modeling.sink_attention` is within 2e-7 of fp64, as Megatron's own attention was,
    # whose operations the emulated kernels repeat one by one
    assert model["logits_local"] < 2e-4


def test_every_layer_went_through_the_kernels(model: dict[str, Any]) -> None:
    calls = model["calls"]
    assert calls["fused_attn_fwd"] == LAYERS
    assert calls["te_general_grouped_gemm"] == 2 * LAYERS
    assert calls["generic_gemm"] == 2 * LAYERS
    assert calls["rmsnorm_fwd"] == 2 * LAYERS + 1
    # a window of 32 tokens, itself included, in layers 0 and 2; sinks in all
    windows = {name: count for name, count in calls.items() if "LEARNABLE" in name}
    assert windows == {
        "NVTE_SBHD_SBHD_SBHD NVTE_LEARNABLE_SOFTMAX window 31 torch.float32": 2,
        "NVTE_SBHD_SBHD_SBHD NVTE_LEARNABLE_SOFTMAX window -1 torch.float32": 1,
    }


def test_packed_sequences_do_not_see_each_other(
    model: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    record_property("logits", model["packed"])
    assert model["packed"] < 1e-4
    assert model["packed_calls"]["NVTE_THD_THD_THD NVTE_LEARNABLE_SOFTMAX window 31 torch.float32"] == 2


def test_every_parameter_has_the_local_specs_gradient(
    model: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    record_property("gradients", model["gradients"])
    tensors, engine, local = model["trained"]
    assert tensors == 126
    assert engine == local > 10**6
    assert model["gradients"] < 1e-4  # both round for themselves, as with the logits


def test_recomputation_changes_nothing(model: dict[str, Any]) -> None:
    assert model["attentions"] == [LAYERS, 2 * LAYERS]
    assert model["recomputed"] < 1e-6


def test_transformer_engines_own_permutation_gives_the_same_gradients(model: dict[str, Any]) -> None:
    assert model["permutation"] < 1e-4


def test_the_way_back_is_exact(model: dict[str, Any]) -> None:
    assert model["tensors"] == [54, 54, 54]


def test_unfused_attention_needs_no_emulated_kernel(model: dict[str, Any]) -> None:
    """What fp32 gets on a GPU is Transformer Engine's attention in torch."""
    assert model["unfused"] < 1e-4
    assert not [name for name in model["unfused_calls"] if "attn" in name]
