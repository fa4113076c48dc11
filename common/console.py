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

from common.errors import NemoRunError

_console: TextIO = sys.stdout
_RANKS = {
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
}


def rank() -> int:
    """This process's rank among those of the stage."""
    return int(os.environ.get("RANK", "0"))


def ignore_other_launchers() -> None:
    """Forget what Slurm, MPI or a shell say of ranks where no torchrun started this process: it is the only one.

    Within an allocation of eight tasks Lightning 2.6 (`SLURMEnvironment.detect`) would take it for one of eight.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "PMIX_")) or name in _RANKS:
            del os.environ[name]


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
    not installed. What they said before a fault is printed after all; before an error of the user's it is not."""
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except NemoRunError:
        raise
    except BaseException:
        print(said.getvalue(), end="", file=sys.stderr)
        raise
