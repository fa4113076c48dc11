from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from modeling import cpu_backend

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a CUDA device is present: the backend stays inactive"
)


@pytest.fixture(autouse=True)
def active() -> None:
    assert cpu_backend.activate()


def test_cuda_literals_mean_the_cpu() -> None:
    assert torch.zeros(2, device="cuda").device.type == "cpu"
    assert torch.ones(2).cuda().device.type == "cpu"
    assert torch.ones(2).to("cuda").device.type == "cpu"
    assert torch.ones(2).to(device="cuda:0", dtype=torch.float64).dtype == torch.float64
    assert torch.empty(2, device=torch.cuda.current_device()).device.type == "cpu"
    assert torch.ones(2, pin_memory=True).sum() == 2


def test_other_calls_are_left_alone() -> None:
    assert torch.ones(2).to(torch.float64).dtype == torch.float64
    assert torch.ones(2).type() == "torch.FloatTensor"
    assert torch.zeros(2, device="meta").device.type == "meta"


def test_streams_and_events_do_nothing() -> None:
    stream, event = torch.cuda.Stream(), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        event.record()
    stream.wait_event(event)
    torch.cuda.current_stream().wait_stream(stream)
    assert event.query()


def test_random_state_is_the_cpu_generators() -> None:
    torch.cuda.manual_seed(3)
    state = torch.cuda.get_rng_state()
    first = torch.rand(4)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(4), first)


def test_activating_twice_changes_nothing() -> None:
    before = torch.cuda.current_device
    assert cpu_backend.activate()
    assert torch.cuda.current_device is before


@pytest.mark.parametrize(
    ("ranks", "wanted", "threads"),
    [("1", "", 6), ("1", "3", 3), ("4", "1", 1), ("2", "1", 3), ("8", "", 1), ("1", "4,2", 6), ("1", "0", 1)],
)
def test_threads_of_a_rank(monkeypatch: pytest.MonkeyPatch, ranks: str, wanted: str, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert cpu_backend.threads_of_rank() == threads


@pytest.mark.slow
def test_inactive_where_cuda_is_present() -> None:
    code = (
        "import torch; torch.cuda.is_available = lambda: True; before = dict(vars(torch.cuda));"
        "from modeling import cpu_backend; assert cpu_backend.activate() is False;"
        "assert all(before[name] is vars(torch.cuda)[name] for name in before);"
        "assert torch.nn.Module.cuda.__name__ == 'cuda'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.slow
def test_megatron_loads_where_a_cuda_compiler_is_but_no_gpu() -> None:
    """torch built for CUDA raises IndexError there when megatron-core 0.15.3 compiles on import."""
    code = (
        "import torch.utils.cpp_extension as e;"
        "e.load_inline = lambda *a, **k: [][-1];"
        "from modeling import cpu_backend; assert cpu_backend.activate();"
        "from megatron.core.inference import unified_memory; assert not unified_memory.has_unified_memory"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
