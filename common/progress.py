"""Progress of a command: its functions report `Done`, and `bars` draws the reports on stderr."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Item = TypeVar("Item")
EVERY = 256
"""Items between two reports of `reported`."""


@dataclass(frozen=True)
class Done:
    """Units done of a step, units in all (None where unknown), and a note beside the bar."""

    step: str
    done: int
    total: int | None = None
    note: str = ""


Progress = Callable[[Done], None]


def quiet(done: Done) -> None:
    """The `Progress` that discards every report."""


def reported(items: Iterable[Item], step: str, total: int | None, progress: Progress) -> Iterator[Item]:
    """Yield the items, and report progress every `EVERY` items and at the end."""
    done = 0
    for item in items:
        if done % EVERY == 0:
            progress(Done(step, done, total))
        yield item
        done += 1
    progress(Done(step, done, total or done))


class TensorCounter:
    """Adds up bytes and tensors that several threads write; an expert's matrix counts as a tensor."""

    def __init__(self, step: str, all_bytes: int, all_tensors: int, progress: Progress) -> None:
        self._step, self._all_bytes, self._all_tensors, self._progress = step, all_bytes, all_tensors, progress
        self._bytes = self._tensors = 0
        self._lock = threading.Lock()

    def __call__(self, size: int, tensors: int) -> None:
        """Count `size` more bytes, of so many tensors."""
        with self._lock:
            self._bytes += size
            self._tensors += tensors
            note = f"{self._tensors}/{self._all_tensors} tensors"
            self._progress(Done(self._step, self._bytes, self._all_bytes, note))


@contextmanager
def bars(unit: Literal["items", "bytes"] = "items") -> Iterator[Progress]:
    """A bar for each step on stderr, with the time left; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        yield quiet
        return
    amount = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    note = TextColumn("{task.fields[note]}")
    columns = (TextColumn("{task.description}"), BarColumn(), *amount, note, TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True) as shown:
        tasks: dict[str, Any] = {}

        def show(done: Done) -> None:
            if done.step not in tasks:
                tasks[done.step] = shown.add_task(done.step, total=None, note="")
            shown.update(tasks[done.step], completed=done.done, total=done.total, note=done.note)

        yield show
