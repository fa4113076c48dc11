"""`transformer_engine_torch`, the compiled extension of Transformer Engine, as a Python module.

Its enumerations are read from the headers in Transformer Engine's own wheel; its functions are those of `kernels`, and
the choice of an attention backend, which the wheel's compiled library makes. Whatever else Transformer Engine's Python
files name is there, and raises when it is called.
"""

from __future__ import annotations

import ctypes
import enum
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.gpu_path import kernels

NAME = "transformer_engine_torch"


def extension(package: Path, library: ctypes.CDLL, cudnn: Callable[[], int]) -> ModuleType:
    """The module, to be put into `sys.modules` before `transformer_engine.pytorch` is imported.

    Args:
        package: folder of `transformer_engine`.
        library: libtransformer_engine.so.
        cudnn: the version that the machine is to have, as cuDNN counts them.
    """
    module = ModuleType(NAME)
    enumerations = dict(_enumerations(package / "common" / "include" / "transformer_engine"))
    enumerations["DType"] = _dtypes(enumerations["NVTEDType"])
    for name, value in {**enumerations, **kernels.REPLACED}.items():
        setattr(module, name, value)
    backends: Any = enumerations["NVTE_Fused_Attn_Backend"]
    replaced = {
        "get_fused_attn_backend": lambda *arguments: backends(_fused_backend(library, *arguments)),
        "get_cudnn_version": cudnn,
        "get_cublasLt_version": lambda: 130100,
        "get_num_cublas_streams": lambda: 4,
    }
    vars(module).update(replaced)
    # transformer_engine.pytorch.cpp_extensions imports all names there are, and its callers ask it, not this module
    for file in (package / "pytorch").rglob("*.py"):
        for name in re.findall(r"\btex\.([A-Za-z]\w*)", file.read_text()):
            vars(module).setdefault(name, _missing(name))
    module.__getattr__ = _missing  # type: ignore[method-assign]
    return module


def _enumerations(headers: Path) -> Iterator[tuple[str, type[enum.IntEnum]]]:
    """Every C enumeration of Transformer Engine's headers, as pybind11 shows it to Python."""
    for header in sorted(headers.glob("*.h")):
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", header.read_text(), flags=re.DOTALL)
        for name, body in re.findall(r"enum (?:class )?(NVTE\w+)\s*(?::\s*\w+\s*)?\{(.*?)\}", text, re.DOTALL):
            values: dict[str, int] = {}
            following = 0
            for item in filter(None, (part.strip() for part in body.split(","))):
                key, _, given = (part.strip() for part in item.partition("="))
                values[key] = values[given] if given in values else int(given, 0) if given else following
                following = values[key] + 1
            yield name, enum.IntEnum(name, values)  # pyright: ignore[reportReturnType]


def _dtypes(of_headers: type[enum.IntEnum]) -> type[enum.IntEnum]:
    """pybind11 leaves out what no tensor of torch's has (common/util/pybind_helper.h)."""
    hidden = ("kNVTEInt16", "kNVTEInt64", "kNVTEFloat8E8M0", "kNVTENumTypes")
    shown = {member.name.replace("kNVTE", "k"): member.value for member in of_headers if member.name not in hidden}
    return enum.IntEnum("DType", shown)


class _AnyName(type):
    """A class with every attribute: stands for classes and enumerations of FP8 and of communication overlap."""

    def __getattr__(cls, name: str) -> int:
        if name.startswith("_"):
            raise AttributeError(name)
        return len(name)


def _missing(name: str) -> Any:
    """What no kernel replaces: a class for annotations and isinstance, or a function that raises."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name[0].isupper():
        return _AnyName(name, (), {})

    def not_emulated(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{NAME}.{name} is not written in tests/gpu_path/kernels.py")

    return not_emulated


def _fused_backend(library: ctypes.CDLL, training: bool, *arguments: Any) -> int:
    """What the compiled library chooses: `nvte_get_fused_attn_backend` of Transformer Engine 2.12's fused_attn.h.

    Args:
        arguments: types of Q and KV, layout, bias, mask and softmax; dropout; heads, groups, lengths of Q and KV, head
            dimensions; window; whether the largest logit is returned, a CUDA graph recorded, the result deterministic.
    """
    function = library.nvte_get_fused_attn_backend
    kinds = [ctypes.c_bool, *[ctypes.c_int] * 6, ctypes.c_float, *[ctypes.c_size_t] * 6, *[ctypes.c_int64] * 2]
    function.argtypes = [*kinds, *[ctypes.c_bool] * 3]
    numbers = [value if isinstance(value, bool | float) else int(value) for value in arguments]
    return function(training, *numbers)
