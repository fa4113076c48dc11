"""Import what training needs and print the kernels that it will use; exit status 1 where something is missing."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main() -> int:
    """Print a line for each part; 0 when training can run."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch

    from modeling import cpu_backend

    on_cpu = cpu_backend.activate()
    told = [f"torch {torch.__version__}"]
    healthy = True
    for name in ("nemo_run", "megatron.core", "nemo", "transformers", "numba"):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            told.append(f"{name}: MISSING ({error})")
            healthy = False
        else:
            told.append(f"{name} {getattr(module, '__version__', '')}".rstrip())
    if on_cpu:
        told.append("device: CPU; gloo between processes; Megatron's unfused attention and experts one by one")
    else:
        told += _gpu(torch)
        healthy = healthy and not any("UNSUPPORTED" in line or "MISSING" in line for line in told)
    print("\n".join(told))
    return 0 if healthy else 1


def _gpu(torch) -> list[str]:  # type: ignore[no-untyped-def]
    """Versions, and what the recipes' attention gets: `modeling.attention` decides, as it does for training."""
    from common.errors import ConfigurationError
    from modeling.attention import attention_backend, this_machine

    machine = this_machine()
    lines = [f"device: {torch.cuda.get_device_name(0)} × {machine.gpus}; NCCL between processes", str(machine)]
    try:
        import transformer_engine  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return [*lines, f"Transformer Engine: MISSING ({error})"]
    for use, packed, precision in (("bf16, packed", True, "bf16"), ("bf16", False, "bf16"), ("fp32", False, "fp32")):
        try:
            backend = attention_backend(machine, packed=packed, precision=precision)
            lines.append(f"attention, {use}: {backend}, with sinks")
        except ConfigurationError as error:
            lines.append(f"attention, {use}: UNSUPPORTED, {error}")
    return [*lines, "experts: grouped GEMM"]


if __name__ == "__main__":
    sys.exit(main())
