"""Import what training needs and print the kernels that it will use; exit status 1 where something is missing."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

CUDNN, TRANSFORMER_ENGINE = (9, 18), (2, 12)  # attention sinks with packed sequences


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
        healthy = healthy and not any("TOO OLD" in line or "MISSING" in line for line in told)
    print("\n".join(told))
    return 0 if healthy else 1


def _gpu(torch) -> list[str]:  # type: ignore[no-untyped-def]
    cudnn = torch.backends.cudnn.version() or 0
    found = (cudnn // 10_000, cudnn // 100 % 100)
    lines = [f"device: {torch.cuda.get_device_name(0)} × {torch.cuda.device_count()}; NCCL between processes"]
    lines.append(f"cuDNN {found[0]}.{found[1]}" + ("" if found >= CUDNN else ": TOO OLD for sinks with packing"))
    try:
        import transformer_engine  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return [*lines, f"Transformer Engine: MISSING ({error})"]
    version = tuple(int(part) for part in transformer_engine.__version__.split("+")[0].split(".")[:2])
    old = version < TRANSFORMER_ENGINE
    lines.append(
        f"Transformer Engine {transformer_engine.__version__}" + (": TOO OLD for sinks with packing" if old else "")
    )
    lines.append("attention: cuDNN fused, with sinks; experts: grouped GEMM")
    return lines


if __name__ == "__main__":
    sys.exit(main())
