"""A function of this package in the processes of one torchrun: both ends of the job.

`run_job` writes the job, a frozen dataclass whose `target` names a function, and starts the processes; in each of them
`python -m common.torchrun JOB.json` reads it back and calls that function. What libraries print goes to
`JOB.rankN.log` beside the file. A job that is refused fails with that sentence alone, a broken one with the end of the
log of the process that failed first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import ClassVar, Protocol

from common import fields
from common.console import rank, send_libraries_to
from common.errors import LaunchError, NemoRunError
from common.repository import REPOSITORY

KEPT_LINES = 15
REFUSAL = "error: "
"""What the sentence of an error of the user's begins with, at the end of a process's log."""


class Job(Protocol):
    """A dataclass of plain values that names the function to call with it, as "package.module:function".

    The function is called with the job and the file that it is to write on rank 0.
    """

    target: ClassVar[str]


@contextmanager
def run_job(job: Job, processes: int) -> Iterator[Path]:
    """Run a job in `processes` processes on this machine; yields its result file, which is removed afterwards.

    Raises:
        LaunchError: a process failed.
    """
    with tempfile.TemporaryDirectory(prefix="nemo-run-") as folder:
        out, file = Path(folder) / "out", Path(folder) / "job.json"
        kind = f"{type(job).__module__}:{type(job).__qualname__}"
        file.write_text(json.dumps({"kind": kind, "job": fields.to_tree(job), "out": str(out)}))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "LOGLEVEL": "ERROR"}
        command = [*torchrun, "-m", "common.torchrun", str(file)]
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0 or not out.is_file():
            logs = _logs(Path(folder))
            raise LaunchError(_refusal(logs) or f"{job.target} failed in {processes} processes.\n{_end(logs)}")
        yield out


def _logs(folder: Path) -> list[str]:
    """What each process wrote, of the one that ended first at first."""
    logs = sorted(folder.glob("job.rank*.log"), key=lambda log: log.stat().st_mtime_ns)
    return [log.read_text(errors="replace") for log in logs]


def _refusal(logs: list[str]) -> str | None:
    """The sentence of the process that refused the job, without what libraries said before it."""
    said = (f"\n{log}".rpartition(f"\n{REFUSAL}") for log in logs)
    return next((text.strip() for _, sign, text in said if sign and "Traceback" not in text), None)


def _end(logs: list[str]) -> str:
    """The last lines of the process that failed first; those of its peers only say that it went away."""
    failed = [log for log in logs if "Traceback" in log]
    return "\n".join(next(iter(failed or logs), "").splitlines()[-KEPT_LINES:])


def main() -> int:
    """Call the job's function in this process; 0 when it is done."""
    file = Path(sys.argv[1])
    send_libraries_to(file.with_suffix(f".rank{rank()}.log"))
    try:
        described = json.loads(file.read_text())
        kind = resolve_name(described["kind"])
        resolve_name(kind.target)(fields.from_tree(kind, described["job"], str(file)), Path(described["out"]))
    except NemoRunError as error:
        print(f"{REFUSAL}{error}")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Peers may wait in a collective, and interpreter shutdown would wait for them.
    os._exit(status)
