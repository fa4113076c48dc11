"""How far a conversion is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Done:
    """What is written so far, and what will be in all; an expert's matrix counts as a tensor."""

    bytes: int
    all_bytes: int
    tensors: int
    all_tensors: int


Progress = Callable[[Done], None]


class Counter:
    """Adds up bytes and tensors from several threads for a progress callback."""

    def __init__(self, all_bytes: int, all_tensors: int, progress: Progress) -> None:
        self._all_bytes, self._all_tensors, self._progress = all_bytes, all_tensors, progress
        self._bytes = self._tensors = 0
        self._lock = threading.Lock()

    def __call__(self, size: int, tensors: int) -> None:
        """Count `size` more bytes, of so many tensors."""
        with self._lock:
            self._bytes += size
            self._tensors += tensors
            self._progress(Done(self._bytes, self._all_bytes, self._tensors, self._all_tensors))
