"""Which attention kernel a machine can use: gpt-oss has sinks, and few kernels do. Imports no Megatron.

Everything that asks goes through `attention_backend`: training, the container's health check, preflight, the planner.
`tests/gpu_path` compares its answers with those of Transformer Engine's own code.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from common.errors import ConfigurationError

# Transformer Engine 2.8 brought sinks (pull request 2148); its fused kernel has them from cuDNN 9.13.1 on, and with
# packed sequences from cuDNN 9.18 and Transformer Engine 2.12 on (issue 2483, pull request 2568). Its flash-attention
# backend has none.
SINKS, FUSED, PACKED, PACKED_FUSED = Version("2.8"), Version("9.13.1"), Version("2.12"), Version("9.18")
AMPERE, HOPPER, SMALL_BLACKWELL = (8, 0), (9, 0), (12, 0)
"""Compute capabilities: the first with bf16; the first whose fused kernel takes packed sequences; one that does not."""
CP_EXCHANGE = "a2a"
"""How context-parallel ranks exchange keys and values: with sinks Transformer Engine 2.12 knows no other way."""


@dataclass(frozen=True)
class Machine:
    """What a machine has for attention; None where there is none of it.

    Attributes:
        engine, cudnn: versions of Transformer Engine and of the cuDNN that torch uses.
        capability: CUDA compute capability, the lowest of all GPUs.
        gpus, gpu_memory: GPUs, and bytes of the smallest.
    """

    engine: Version | None = None
    cudnn: Version | None = None
    capability: tuple[int, int] | None = None
    gpus: int = 0
    gpu_memory: int = 0

    def __str__(self) -> str:
        if self.capability is None:
            return "no GPU"
        parts = (("Transformer Engine", self.engine), ("cuDNN", self.cudnn))
        told = [f"{name} {found}" if found else f"no {name}" for name, found in parts]
        return ", ".join([*told, f"compute capability {_dotted(self.capability)}"])


def this_machine() -> Machine:
    """The machine that this process runs on."""
    import torch

    try:
        engine = Version(version("transformer_engine"))
    except PackageNotFoundError:
        engine = None
    if not torch.cuda.is_available():
        return Machine(engine)
    number = torch.backends.cudnn.version()
    # 91801 is 9.18.1
    cudnn = Version(f"{number // 10000}.{number // 100 % 100}.{number % 100}") if number else None
    gpus = range(torch.cuda.device_count())
    return Machine(
        engine,
        cudnn,
        min(torch.cuda.get_device_capability(gpu) for gpu in gpus),
        len(gpus),
        min(torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus),
    )


def attention_backend(machine: Machine, *, packed: bool, precision: str = "bf16", context: int = 1) -> str:
    """The name in Megatron's `AttnBackend` of the fastest backend that computes gpt-oss attention rightly.

    "fused" and "unfused" are Transformer Engine's; "local" is torch's (`modeling.sink_attention`), which takes what
    they do not.

    Args:
        packed: whether several tickets share a sequence.
        precision: of the model, "bf16" or "fp32".
        context: ranks that share a sequence (context parallelism).
    Raises:
        ConfigurationError: no backend does; the message says what is missing and what to set.
    Source: `get_attention_backend` of Transformer Engine 2.12.0 (dot_product_attention/utils.py), and
        `nvte_get_fused_attn_backend` of its library.
    """
    engine = machine.engine and Version(machine.engine.base_version)  # a development build counts as what it becomes
    if engine is not None and engine < SINKS:
        raise ConfigurationError(
            f"Transformer Engine {engine} knows no attention sinks: use {SINKS}, as the image of containers/ has."
        )
    if packed and context > 1:
        # megatron-core 0.15.3, `get_batch_on_this_cp_rank`: it slices the packed lengths like a tensor of tokens.
        raise ConfigurationError(
            f"packed sequences cannot be split over {context} ranks: set data.packed=false, or "
            "trainer.strategy.context_parallel_size=1."
        )
    fused = _has_fused(engine, machine, precision)
    if packed:
        return "fused" if _has_packed(engine, machine, precision) else "local"
    if context > 1 and not fused:
        raise ConfigurationError(
            f"context parallelism with attention sinks needs bf16, Transformer Engine {SINKS}, cuDNN {FUSED} and "
            f"compute capability {_dotted(AMPERE)}; this is {precision} with {machine}: set "
            "trainer.strategy.context_parallel_size=1."
        )
    if engine is None:
        return "local"
    return "fused" if fused else "unfused"


def in_words(backend: str) -> str:
    """A backend as people know it."""
    return "attention by torch" if backend == "local" else f"Transformer Engine's {backend} attention"


def _has_fused(engine: Version | None, machine: Machine, precision: str) -> bool:
    """Whether cuDNN's kernel takes sequences that are not packed; it computes in 16 bits alone."""
    new_enough = machine.capability is not None and machine.capability >= AMPERE
    return (
        engine is not None
        and machine.cudnn is not None
        and machine.cudnn >= FUSED
        and new_enough
        and precision == "bf16"
    )


def _has_packed(engine: Version | None, machine: Machine, precision: str) -> bool:
    """Whether cuDNN's kernel takes packed sequences."""
    newer = engine is not None and engine >= PACKED and machine.cudnn is not None and machine.cudnn >= PACKED_FUSED
    capability = machine.capability
    large = capability is not None and capability >= HOPPER and capability != SMALL_BLACKWELL
    return newer and large and precision == "bf16"


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
