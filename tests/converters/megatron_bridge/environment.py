"""megatron-core 0.19.2 and megatron-bridge 0.6.2 on a CPU, beside .venv's NeMo, from the folder of make bridge-env.

Nothing of the numerics is here. `core()` or `bridge()` comes before anything of megatron is imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import types
import typing
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch._dynamo

from modeling import cpu_backend
from tests.conftest import REPOSITORY

FOLDER, ENGINE = REPOSITORY / ".megatron-bridge", REPOSITORY / ".gpu-path"
# Imported by modules of which nothing is used here: kernels, and with them Triton; readers of pictures and films.
_KERNELS, _UNUSED = "megatron.core.transformer.moe.ops.paged_stash", "megatron.energon"


def require(*folders: Path) -> None:
    """Skip the test where one of the environments has not been made."""
    for folder, target in ((FOLDER, "bridge-env"), (ENGINE, "gpu-path-env")):
        if folder in folders and not (folder / ".installed").is_file():
            pytest.skip(f"{folder.name} is not there: make {target}")


def variables(*folders: Path) -> dict[str, str]:
    """Of a process that imports from these folders."""
    paths = os.pathsep.join(map(str, (REPOSITORY, *folders)))
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}


def core() -> None:
    """Make megatron-core importable and able to run."""
    # dist_checkpointing/strategies/nvrx.py asks for the package's version, which the one of NeMo 2 does not have
    sys.modules["nvidia_resiliency_ext"] = None  # type: ignore[assignment]
    sys.modules[_KERNELS] = _Unused(_KERNELS)
    torch._dynamo.config.disable = True
    cpu_backend._redirect_cuda_functions()
    cpu_backend.CudaLiteralsMode().__enter__()
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    # the states of CUDA's generator, for dropouts, of which gpt-oss has none
    CudaRNGStatesTracker.fork = lambda *_: nullcontext()  # type: ignore[assignment]


def bridge() -> None:
    """Make megatron-bridge importable, with Transformer Engine on emulated kernels, as in tests/gpu_path."""
    from tests.gpu_path import emulation

    emulation.load_engine()
    emulation._stand_in_for_apex()
    if not hasattr(typing, "override"):  # Python 3.11; megatron/training/models
        from typing_extensions import override

        typing.override = override  # type: ignore[attr-defined]
    sys.meta_path.insert(0, _FindUnused())
    core()


class _Unused(types.ModuleType):
    """A module whose every name is a class."""

    __path__: typing.ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__class_getitem__": classmethod(lambda cls, _: cls)})


class _FindUnused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        named = fullname == _UNUSED or fullname.startswith(_UNUSED + ".")
        return importlib.machinery.ModuleSpec(fullname, self) if named else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Unused(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...
