"""A training in which nothing moves any more is ended, so that whoever started it can start it again."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import lightning.pytorch as pl

from common.console import say

HUNG = 75  # EX_TEMPFAIL


class HangWatch(pl.Callback):
    """Ends this process when no batch has ended for some minutes, on whichever rank the fault is.

    A rank that is stopped, or waits for a disk that is gone, leaves its peers in a collective: those end, and torchrun
    kills what is left. A batch ends when its collectives have; the first one has the same bound.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60
        self.moved = time.monotonic()
        self.ended = False  # no Event: NeMo copies the callbacks, and a lock cannot be copied

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._move()
        threading.Thread(target=self._watch, daemon=True).start()

    def on_train_batch_end(self, *_: Any) -> None:
        self._move()

    def on_validation_batch_end(self, *_: Any) -> None:
        self._move()

    def on_validation_end(self, *_: Any) -> None:
        self._move()

    def on_train_end(self, *_: Any) -> None:
        self.ended = True

    def on_exception(self, *_: Any) -> None:
        self.ended = True

    def _move(self) -> None:
        self.moved = time.monotonic()

    def _watch(self) -> None:
        while not self.ended:
            time.sleep(min(self.seconds / 4, 10))
            if not self.ended and time.monotonic() - self.moved > self.seconds:
                text = f"HangError: no step ended for {self.seconds / 60:g} minutes (hang_minutes of the recipe)"
                print(text, file=sys.stderr, flush=True)
                say(text)
                os._exit(HUNG)
