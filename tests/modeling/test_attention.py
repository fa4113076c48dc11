from __future__ import annotations

import pytest
from packaging.version import Version

from common.errors import ConfigurationError
from modeling.attention import Machine, attention_backend, this_machine


def machine(engine: str | None, cudnn: str | None, capability: tuple[int, int] = (9, 0)) -> Machine:
    engine_version, cudnn_version = (Version(text) if text else None for text in (engine, cudnn))
    return Machine(engine_version, cudnn_version, capability, 8, 80 * 10**9)


H100 = machine("2.12.0", "9.18.0")


@pytest.mark.parametrize(
    ("engine", "cudnn", "packed", "backend"),
    [
        (None, None, False, "local"),
        ("2.8", "9.13.1", False, "fused"),
        ("2.8", "9.13.0", False, "unfused"),
        ("2.12.0", "9.18.0", True, "fused"),
        ("2.12.0.dev0", "9.18.0", True, "fused"),
        ("2.12.0+5be7a8f", "9.18.0", True, "fused"),
        ("2.13", "9.20.1", False, "fused"),
        # torch takes packs that no kernel of Transformer Engine does
        (None, None, True, "local"),
        ("2.11", "9.18", True, "local"),
        ("2.12", "9.17.1", True, "local"),
        ("2.12", None, True, "local"),
    ],
)
def test_the_fastest_that_is_right(engine: str | None, cudnn: str | None, packed: bool, backend: str) -> None:
    assert attention_backend(machine(engine, cudnn), packed=packed) == backend


@pytest.mark.parametrize(("capability", "dense"), [((7, 0), "unfused"), ((8, 0), "fused"), ((12, 0), "fused")])
def test_fused_packing_needs_hopper_or_the_large_blackwell(capability: tuple[int, int], dense: str) -> None:
    gpu = machine("2.12.0", "9.20.0", capability)
    assert attention_backend(gpu, packed=False) == dense
    assert attention_backend(gpu, packed=True) == "local"
    assert attention_backend(machine("2.12.0", "9.20.0", (10, 0)), packed=True) == "fused"


def test_fp32_has_no_fused_kernel() -> None:
    assert attention_backend(H100, packed=False, precision="fp32") == "unfused"
    assert attention_backend(H100, packed=True, precision="fp32") == "local"


def test_context_parallelism_needs_the_fused_kernel_and_no_packing() -> None:
    assert attention_backend(H100, packed=False, context=2) == "fused"
    for gpu, precision in ((machine("2.12.0", "9.13.0"), "bf16"), (H100, "fp32"), (machine(None, None), "bf16")):
        with pytest.raises(ConfigurationError, match=r"context_parallel_size=1\.$"):
            attention_backend(gpu, packed=False, precision=precision, context=2)
    with pytest.raises(ConfigurationError, match="packed sequences cannot be split over 2 ranks"):
        attention_backend(H100, packed=True, context=2)


def test_an_engine_without_sinks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="knows no attention sinks"):
        attention_backend(machine("2.7", "9.13.1"), packed=False)


def test_this_machine_says_what_it_is() -> None:
    found = this_machine()
    assert (found.capability is None) == (found.gpus == 0) == (str(found) == "no GPU")
    assert str(H100) == "Transformer Engine 2.12.0, cuDNN 9.18.0, compute capability 9.0"
