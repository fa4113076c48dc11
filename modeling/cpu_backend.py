"""Real NeMo and Megatron-core on a machine without CUDA: what they hard-wire to a GPU is redirected to the CPU.

`activate()` does nothing where CUDA is present. Elsewhere it must run before anything builds a trainer or a model; it
redirects, with the upstream symbol that forces each (nemo_toolkit 2.7.3, megatron-core 0.15.3):

1. `torch.cuda` functions that megatron-core and NeMo call unconditionally (streams, events, RNG, memory, device);
2. `device="cuda"` literals, `.cuda()` and pinned memory, through a TorchFunctionMode;
3. megatron-core's checks for CUDA tensors and its CUDA random states;
4. NeMo's assertions on CUDA, and a collective that only rank 0 enters;
5. names of Transformer Engine that are read where it is missing, on a GPU as well;
6. torch.compile, which megatron-core's `jit_fuser` applies: off, since on the CPU it wants a C++ compiler and 20 s.

Sizes, the gloo backend and `modeling.layer_spec` are the only other differences to a GPU run.
"""

from __future__ import annotations

import os
import queue
import sys
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
_active: list[TorchFunctionMode] = []


def activate() -> bool:
    """Redirect CUDA calls to the CPU, once; returns whether this process now runs on the CPU backend."""
    if torch.cuda.is_available():
        return False
    if not _active:
        torch._dynamo.config.disable = True
        _redirect_cuda_functions()
        _load_megatron()
        _redirect_megatron()
        _redirect_nemo()
        stand_in_for_engine()
        mode = CudaLiteralsMode()
        mode.__enter__()
        _active.append(mode)
    return True


def threads_of_rank() -> int:
    """This rank's share of the cores that its job may use; of a rank alone on its node, what OMP_NUM_THREADS says.

    torchrun (torch 2.13, `torch.distributed.run`) sets that to 1 itself where it starts several.
    """
    ranks, wanted = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), os.environ.get("OMP_NUM_THREADS", "")
    if ranks == 1 and wanted.isdecimal():
        return max(1, int(wanted))
    return max(1, len(os.sched_getaffinity(0)) // ranks)


# ---- 1. torch.cuda functions --------------------------------------------------------------------------------------


class CpuEvent:
    """Stands in for `torch.cuda.Event`: on the CPU everything has happened when a call returns."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Any) -> float:
        return 0.0


class CpuStream(torch.cpu.Stream):
    """Stands in for `torch.cuda.Stream`; `torch.cpu.stream` accepts it."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, _: Any) -> None: ...
    def wait_event(self, _: Any) -> None: ...
    def synchronize(self) -> None: ...

    def record_event(self, event: Any = None) -> CpuEvent:
        return event or CpuEvent()


def _redirect_cuda_functions() -> None:
    stream = CpuStream()
    # a function of its own for each name: torch._dynamo's rule table refuses one object under two names
    redirected = {
        # all of megatron-core: torch.empty(..., device=torch.cuda.current_device())
        "current_device": lambda: CPU,
        "set_device": lambda *_, **__: None,
        # megatron-core pipeline_parallel/schedules.py, distributed/param_and_grad_buffer.py, moe/token_dispatcher.py
        "Stream": CpuStream,
        "Event": CpuEvent,
        "stream": torch.cpu.stream,
        "current_stream": lambda *_, **__: stream,
        "default_stream": lambda *_, **__: stream,
        "synchronize": lambda *_, **__: None,
        # nemo/lightning/pytorch/strategies and callbacks, lightning's teardown
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "reset_peak_memory_stats": lambda *_: None,
        # megatron-core tensor_parallel/random.py, dist_checkpointing and nemo's RNG state in checkpoints
        "manual_seed": lambda seed: _seed(seed),
        "manual_seed_all": lambda seed: _seed(seed),
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        # nemo/collections/llm/gpt/data/utils.py:777
        "LongTensor": torch.LongTensor,
        "FloatTensor": torch.FloatTensor,
    }
    memory = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
    redirected |= {name: lambda *_, **__: 0 for name in memory}
    for name, function in redirected.items():
        setattr(torch.cuda, name, function)
    # nemo/lightning/megatron_parallel.py:577 moves every model chunk with Module.cuda
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[method-assign,assignment]


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(int(seed))


# ---- 2. literals in calls -----------------------------------------------------------------------------------------


class CudaLiteralsMode(TorchFunctionMode):
    """Turns `device="cuda"`, `.cuda()`, `.to("cuda")` and pinned memory into their CPU meaning.

    Forced by megatron-core transformer/utils.py:35, optimizer/clip_grads.py:90, pipeline_parallel/schedules.py:596,
    nemo/lightning/pytorch/strategies/megatron_strategy.py:801 and others that spell the device out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cuda or func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return _type_name(func(*args))
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], CPU, *args[2:])
        if kwargs:
            if _is_cuda(kwargs.get("device")):
                kwargs = {**kwargs, "device": CPU}
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}
        return func(*args, **(kwargs or {}))


def _is_cuda(device: Any) -> bool:
    return device is not None and not isinstance(device, torch.dtype | torch.Tensor) and str(device).startswith("cuda")


def _type_name(name: str) -> str:
    # megatron-core optimizer/{optimizer,distrib_optimizer,clip_grads}.py accept 'torch.cuda.FloatTensor' by name only.
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return name.replace("torch.", "torch.cuda.") if caller.startswith("megatron.core.optimizer") else name


# ---- 3. megatron-core ---------------------------------------------------------------------------------------------


def _load_megatron() -> None:
    """Import megatron-core without its CUDA library for managed memory.

    inference/unified_memory.py:71 compiles it on import, and goes on where that fails with RuntimeError; a torch built
    for CUDA fails with IndexError where nvcc is, but no GPU, as on many login nodes.
    """
    import torch.utils.cpp_extension as cpp_extension

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no CUDA here")

    compile_inline, cpp_extension.load_inline = cpp_extension.load_inline, refuse
    try:
        import megatron.core  # noqa: F401
    finally:
        cpp_extension.load_inline = compile_inline


def _redirect_megatron() -> None:
    import megatron.core.dist_checkpointing.strategies.filesystem_async as filesystem_async
    import megatron.core.parallel_state as parallel_state
    import megatron.core.tensor_parallel.random as random
    import megatron.core.transformer.moe.token_dispatcher as token_dispatcher

    # random.py:42-90: the tracker forks states of a CUDA generator
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)

    # token_dispatcher.py records the copy on a CUDA side stream
    token_dispatcher.maybe_move_tensor_to_cpu = lambda tensor, as_numpy=False, record_stream=False: (
        tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor
    )

    # filesystem_async.py:55 starts a manager process for results that cross processes in asynchronous saves only (2 s,
    # and it outlives a killed rank)
    filesystem_async._results_queue = queue.Queue()

    # nemo/lightning/megatron_init.py:238 seeds the model-parallel generators only if torch.cuda.device_count() > 0
    initialize = parallel_state.initialize_model_parallel

    def initialize_and_seed(*args: Any, **kwargs: Any) -> None:
        initialize(*args, **kwargs)
        random.model_parallel_cuda_manual_seed(torch.initial_seed() % 2**31)

    parallel_state.initialize_model_parallel = initialize_and_seed


# ---- 4. NeMo ------------------------------------------------------------------------------------------------------


def _redirect_nemo() -> None:
    import nemo.lightning.io.pl as io
    import nemo.lightning.pytorch.callbacks.progress_printer as progress_printer

    # io/pl.py:488 asserts torch.cuda.is_initialized()
    io._fix_tensors_device = lambda checkpoint: checkpoint

    # progress_printer.py:153 all-gathers Megatron's timers on rank 0 alone; every later collective is then off by one
    progress_printer.ProgressPrinter.log_megatron_timers = lambda self, timers: None


# ---- 5. Transformer Engine ----------------------------------------------------------------------------------------


def stand_in_for_engine() -> None:
    """Define what Megatron-core and NeMo read of Transformer Engine where it is missing, without CUDA or with it."""
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import nemo.collections.llm.peft.lora as lora
    import nemo.collections.llm.peft.utils as peft_utils

    # moe_utils.py:958 reads a name that is imported with Transformer Engine only (NameError)
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None

    # peft/lora.py:703 compares with te.Linear whether or not Transformer Engine is there; peft/utils.py:68 keeps mock
    # classes of megatron-core's extension, on which isinstance fails
    if not lora.HAVE_TE:
        lora.te = SimpleNamespace(Linear=type("NoTransformerEngineLinear", (), {}))
        peft_utils.HAVE_TE, peft_utils.TECL, peft_utils.TERL = False, (), ()
