"""A GPU that is not there: the package, NeMo and Megatron-core take the path that they take on one.

`activate()` comes before anything else is imported; PYTHONPATH holds the folder that install.sh filled. Real: every
Python file of Transformer Engine, its compiled library where it chooses attention backends, Triton's kernels through
Triton's interpreter, Megatron-core's layer spec for GPUs, NeMo, the package. Stand-ins:

1. CUDA's libraries, which only say which device and which cuDNN there are: fake_gpu.c;
2. Transformer Engine's compiled extension: `extension`, and `kernels` for what computes;
3. `torch.cuda` and tensors on it: those of `modeling.cpu_backend`, and for Transformer Engine's eyes alone a GPU;
4. apex's one function that Megatron-core calls, as NVIDIA's image has it: `_stand_in_for_apex`;
5. what the package asks about the machine: `modeling.attention.this_machine`.

So tensors lie on the CPU, and gloo, not NCCL, is between processes.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from packaging.version import Version

from modeling import attention, cpu_backend
from tests.gpu_path import extension, kernels

DEVICES = {(9, 0): 0, (8, 0): 1, (10, 0): 2, (12, 0): 3}
"""fake_gpu.c's device of each compute capability: Transformer Engine's library asks a device once."""

_cuda: ctypes.CDLL
_gpu = SimpleNamespace(capability=(9, 0), cudnn=91800)


def folder() -> Path | None:
    """Where install.sh put Transformer Engine, if it is on `sys.path`."""
    return next((path for path in map(Path, sys.path) if (path / "cuda" / "libcudart.so.13").is_file()), None)


def activate() -> None:
    """Make this process one that sees a GPU: at first an H100 with cuDNN 9.18.0; `become` changes that."""
    load_engine()
    attention.this_machine = machine
    _stand_in_for_apex()
    cpu_backend.activate()
    _reach_backward_passes()


def load_engine() -> None:
    """Import Transformer Engine alone, without Megatron-core and NeMo."""
    global _cuda
    here = folder()
    assert here is not None, "install.sh has filled no folder of PYTHONPATH"
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before torch is imported"
    os.environ |= {"CUDA_HOME": str(here / "cuda"), "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    for library in sorted((here / "cuda").glob("*.so.*")):
        loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        if library.name.startswith("libcudart"):
            _cuda = loaded
    _show_gpu_to_engine()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses its extension
        common: Any = importlib.import_module("transformer_engine.common")
    package = here / "transformer_engine"
    sys.modules[extension.NAME] = extension.extension(package, common._TE_LIB_CTYPES, lambda: _gpu.cudnn)
    common.load_framework_extension = lambda framework: None
    importlib.import_module("transformer_engine.pytorch")
    _interpret_triton()
    become((9, 0), 91800)


def become(capability: tuple[int, int], cudnn: int) -> None:
    """Be another GPU from now on; `cudnn` as cuDNN counts versions, 91801 for 9.18.1."""
    _gpu.capability, _gpu.cudnn = capability, cudnn
    _cuda.fake_gpu_set(DEVICES[capability], ctypes.c_size_t(cudnn))
    utils: Any = importlib.import_module("transformer_engine.pytorch.utils")
    for name in ("_get_device_compute_capability", "get_cudnn_version", "_get_cudnn_version"):  # the last from 2.20 on
        getattr(getattr(utils, name, None), "cache_clear", bool)()
    forget_backend()


def forget_backend() -> None:
    """Have Transformer Engine choose its attention backend anew: it remembers the last choice."""
    module: Any = importlib.import_module(f"{DOT_PRODUCT}.dot_product_attention")
    module._attention_backends.update(attention_params=None, backend_selection_requires_update=True)


def machine() -> attention.Machine:
    """Stands in for `modeling.attention.this_machine`."""
    number = _gpu.cudnn
    cudnn = Version(f"{number // 10000}.{number // 100 % 100}.{number % 100}")
    engine = Version(sys.modules["transformer_engine"].__version__)
    return attention.Machine(engine=engine, cudnn=cudnn, capability=_gpu.capability)


# ---- fp32 through the fused kernel --------------------------------------------------------------------------------

DOT_PRODUCT = "transformer_engine.pytorch.attention.dot_product_attention"


class _TorchWhereHalfIsFloat(ModuleType):
    """torch, whose float16 is float32."""

    float16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def let_fused_attention_take_fp32() -> None:
    """Have fp32 attention choose and run as bf16 does: differences of 1e-6 then mean something.

    No GPU does that: FusedAttention.forward (backends.py of Transformer Engine 2.12.0) takes float16 and bfloat16.
    """
    backends: Any = importlib.import_module(f"{DOT_PRODUCT}.backends")
    backends.torch = _TorchWhereHalfIsFloat("torch")
    utils: Any = importlib.import_module(f"{DOT_PRODUCT}.utils")
    choose = utils.get_attention_backend

    def choose_as_for_bf16(parameters: Any) -> Any:
        parameters.qkv_dtype = torch.bfloat16
        return choose(parameters)

    utils.get_attention_backend = choose_as_for_bf16


# ---- what Transformer Engine sees ---------------------------------------------------------------------------------


def _asked_by_engine() -> bool:
    return sys._getframe(2).f_globals.get("__name__", "").startswith("transformer_engine.")


def _show_gpu_to_engine() -> None:
    """`torch.cuda.is_available()` and `tensor.is_cuda`, true where Transformer Engine asks; the device's properties."""

    def is_available() -> bool:
        return _asked_by_engine()

    def is_cuda(_: torch.Tensor) -> bool:
        return _asked_by_engine()

    def properties(*_: Any) -> SimpleNamespace:
        major, minor = _gpu.capability
        return SimpleNamespace(major=major, minor=minor, multi_processor_count=132, name="no GPU")

    torch.cuda.is_available = is_available
    torch.Tensor.is_cuda = property(is_cuda)  # type: ignore[assignment,misc]
    torch.cuda.get_device_properties = properties  # type: ignore[assignment]
    torch.cuda.get_device_capability = lambda *_: _gpu.capability
    torch.cuda.get_device_name = lambda *_: "no GPU"
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.current_device = lambda: cpu_backend.CPU  # type: ignore[assignment,return-value]


def _stand_in_for_apex() -> None:
    """Where apex is installed, NeMo has Megatron-core add weight gradients into fp32 buffers as they are computed."""
    apex: Any = ModuleType("fused_weight_gradient_mlp_cuda")

    def wgrad_gemm_accum_fp32(x: torch.Tensor, gradient: torch.Tensor, total: torch.Tensor) -> None:
        """Add gradientᵀ · x to `total` (out, in), fp32."""
        kernels.CALLS["wgrad_gemm_accum_fp32"] += 1
        total.add_(gradient.float().T @ x.float())

    apex.wgrad_gemm_accum_fp32 = wgrad_gemm_accum_fp32
    sys.modules[apex.__name__] = apex


def _reach_backward_passes() -> None:
    """torch leaves function modes while it runs a custom function's backward: enter cpu_backend's there again."""
    for module in ("megatron.core.models.gpt.gpt_model", "megatron.core.transformer.moe.moe_layer"):
        importlib.import_module(module)
    for function in set(_subclasses(torch.autograd.Function)):
        if function.__module__.startswith(("transformer_engine", "megatron")) and "backward" in vars(function):
            function.backward = staticmethod(_with_cuda_literals(function.backward))  # type: ignore[method-assign]


def _subclasses(of: type) -> Iterator[type[Any]]:
    for each in of.__subclasses__():
        yield each
        yield from _subclasses(each)


def _with_cuda_literals(backward: Any) -> Any:
    def within(*arguments: Any, **named: Any) -> Any:
        with cpu_backend.CudaLiteralsMode():
            return backward(*arguments, **named)

    return within


def _interpret_triton() -> None:
    """What Triton 3.7.1's interpreter lacks: an autotuner that does not measure, and device functions that call others.

    Of an autotuner's configurations the last is taken, which has the largest blocks and so the fewest programs.
    """
    import triton.runtime.autotuner as autotuner  # pyright: ignore[reportMissingImports]
    import triton.runtime.interpreter as interpreter  # pyright: ignore[reportMissingImports]

    def run(self: Any, *arguments: Any, **named: Any) -> Any:
        return self.fn.run(*arguments, **named, **self.configs[-1].all_kwargs())

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        return self.rewrite()(*arguments, **named)

    autotuner.Autotuner.run = run
    interpreter.InterpretedFunction.__call__ = call
