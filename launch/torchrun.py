"""Run a function of this package here, under torchrun, in as many processes as a layout needs."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errors import LaunchError
from launch.packaging import REPOSITORY
from modeling.layouts import Layout

KEPT_LINES = 15


def processes_of(layout: Layout) -> int:
    """The fewest processes that a layout runs in."""
    return layout.pipeline * math.lcm(layout.tensor, layout.expert)


@contextmanager
def run_job(function: str, processes: int, **arguments: Any) -> Iterator[Path]:
    """Call `package.module.function` in so many processes; `out` among its arguments is a file that it writes.

    Yields that file, which is removed afterwards.

    Raises:
        LaunchError: a process failed.
    """
    with tempfile.TemporaryDirectory(prefix="nemo-run-") as folder:
        out = Path(folder) / "out"
        job = Path(folder) / "job.json"
        job.write_text(json.dumps({**arguments, "processes": processes, "out": str(out)}))
        command = [
            sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}",
            f"--master-port={_free_port()}", "-m", "recipes.job", function, str(job),
        ]  # fmt: skip
        path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "LOGLEVEL": "ERROR"}
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0 or not out.is_file():
            logs = sorted(Path(folder).glob("job.rank*.log"))
            last = [line for log in logs[:1] for line in log.read_text(errors="replace").splitlines()[-KEPT_LINES:]]
            raise LaunchError("\n".join([f"{function} failed in {processes} processes.", *last]))
        yield out


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
