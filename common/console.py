"""The console: this package's own lines, apart from the output of libraries."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

_console: TextIO = sys.stdout


def rank() -> int:
    """This process's rank among those of the stage."""
    return int(os.environ.get("RANK", "0"))


def say(text: str) -> None:
    """Print a line on the console."""
    print(text, file=_console, flush=True)


def send_libraries_to(log: Path) -> None:
    """From here on file descriptors 1 and 2 write to `log`, from Python and native code; `say` keeps the console."""
    global _console
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    _console = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what imports print and warn off the console: NeMo 2.7.3 and megatron-core 0.15.3 say twenty lines of what is
    not installed. What they said before an error is printed after all."""
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BaseException:
        print(said.getvalue(), end="", file=sys.stderr)
        raise
