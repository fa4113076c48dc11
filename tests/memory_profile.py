"""Memory that torch allocates, as its profiler saw it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def highest_memory(step: Callable[[], object]) -> int:
    """The highest sum of bytes allocated at a time while `step` runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events: Any = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    live = highest = 0
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        live += size
        highest = max(highest, live)
    return highest
