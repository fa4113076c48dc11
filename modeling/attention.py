"""Which attention kernel a container can use: gpt-oss has sinks, and few kernels do. Imports no Megatron."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from common.errors import ConfigurationError

# Transformer Engine 2.8 brought sinks (pull request 2148); its fused kernel has them from cuDNN 9.13.1 on, and with
# packed sequences from cuDNN 9.18 and Transformer Engine 2.12 on (issue 2483, pull request 2568). Its flash-attention
# backend has none.
SINKS, FUSED, PACKED, PACKED_FUSED = Version("2.8"), Version("9.13.1"), Version("2.12"), Version("9.18")


def installed_versions() -> tuple[Version | None, Version | None]:
    """Versions of Transformer Engine and of the cuDNN that torch uses; None where there is none."""
    import torch

    try:
        engine = Version(version("transformer_engine"))
    except PackageNotFoundError:
        engine = None
    number = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    # 91801 is 9.18.1
    cudnn = Version(f"{number // 10000}.{number // 100 % 100}.{number % 100}") if number else None
    return engine, cudnn


def attention_backend(engine: Version | None, cudnn: Version | None, *, packed: bool) -> str:
    """The name in Megatron's `AttnBackend` of the fastest backend that computes gpt-oss attention rightly.

    Args:
        engine, cudnn: as `installed_versions` gives them.
        packed: whether several tickets share a sequence.
    Raises:
        ConfigurationError: packed sequences with sinks are beyond these versions.
    """
    if packed and (engine is None or cudnn is None or engine < PACKED or cudnn < PACKED_FUSED):
        raise ConfigurationError(
            f"packed sequences with attention sinks need Transformer Engine {PACKED} and cuDNN {PACKED_FUSED}; "
            f"this has {engine or 'no Transformer Engine'} and {cudnn or 'no cuDNN'}: set data.packed=false, or use "
            "the image of containers/."
        )
    if engine is None:
        return "local"
    if engine < SINKS:
        raise ConfigurationError(
            f"Transformer Engine {engine} knows no attention sinks: use {SINKS}, as the image of containers/ has."
        )
    return "fused" if cudnn is not None and cudnn >= FUSED else "unfused"
