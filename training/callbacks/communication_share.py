"""The share of a step's time in which the GPU communicates, from torch's profiler on a step now and then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

EVERY = 100  # steps between profiled ones: the profiler slows the step that it measures


class CommunicationShare:
    """Profiles a step; on a machine without CUDA it measures nothing.

    gloo's collectives wait for other processes on the same cores: their time there says nothing about a network.
    """

    def __init__(self) -> None:
        self._profile: Any = None

    def start(self) -> None:
        """Start to profile the GPU's kernels."""
        if torch.cuda.is_available():
            self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profile.start()

    def stop(self, seconds: float) -> float | None:
        """The share of the `seconds` since `start` in which an NCCL kernel ran; None where nothing was profiled."""
        if self._profile is None:
            return None
        torch.cuda.synchronize()
        self._profile.stop()
        events = self._profile.profiler.kineto_results.events()
        self._profile = None
        kernels = [(event.start_ns(), event.duration_ns()) for event in events if "nccl" in event.name().lower()]
        return union_ns(kernels) / 1e9 / seconds


def union_ns(intervals: Iterable[tuple[int, int]]) -> int:
    """Nanoseconds that lie in at least one of the (start, duration) intervals."""
    total, end = 0, -1
    for start, duration in sorted(intervals):
        stop = start + duration
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total
