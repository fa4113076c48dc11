"""How far a preparation is, told to whoever wants to show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Progress = Callable[[str, int, int | None], None]
"""Called with a step's name, what is done of it, and what there is in all where that is known."""
Item = TypeVar("Item")
EVERY = 256


def quiet(step: str, done: int, total: int | None) -> None:
    """Tell nobody."""


def told(items: Iterable[Item], step: str, total: int | None, progress: Progress) -> Iterator[Item]:
    """The items, with `progress` told of every few hundred."""
    done = 0
    for done, item in enumerate(items):
        if done % EVERY == 0:
            progress(step, done, total)
        yield item
    progress(step, done + 1, total or done + 1)
