"""Cost of a command in seconds and memory, and the seconds that the disk alone takes for the same bytes."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """Seconds and memory of one command.

    Attributes:
        cpu: seconds of all cores together, user and system.
        anonymous: peak of anonymous memory in bytes (RssAnon, summed over its processes, every 10 ms): all that the
            command itself allocated. Pages of mapped files are page cache, which the kernel takes back at will.
        resident: VmHWM of the command in bytes: the same and the mapped files' pages in one.
    """

    seconds: float
    cpu: float
    anonymous: int
    resident: int
    output: str


def run(command: Sequence[str | Path]) -> Cost:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    os.sync()  # what went before is not this command's to write
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    anonymous = resident = 0
    before = _cpu_of_children()
    try:
        while process.poll() is None:
            anonymous = max(anonymous, sum(_status(pid, "RssAnon") for pid in _tree(process.pid)))
            resident = max(resident, _status(process.pid, "VmHWM"))
            time.sleep(0.01)
    finally:
        process.kill()
    seconds = time.perf_counter() - started
    assert process.stdout is not None
    output = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{output[-3000:]}")
    return Cost(seconds, _cpu_of_children() - before, anonymous, resident, output)


def plain_write(folder: Path, size: int) -> float:
    """Seconds to write `size` bytes into one new file, with fsync; the file goes away again."""
    file, block = folder / "plain", os.urandom(2**24)
    os.sync()
    started = time.perf_counter()
    with file.open("wb", buffering=0) as stream:
        for start in range(0, size, len(block)):
            stream.write(block[: size - start])
        os.fsync(stream.fileno())
    seconds = time.perf_counter() - started
    file.unlink()
    return seconds


def plain_read(folder: Path, *, cached: bool = False) -> float:
    """Seconds to read the files of a folder, one after the other; from the disk, unless they may be `cached`."""
    files, block = [file for file in folder.rglob("*") if file.is_file()], bytearray(2**24)
    for file in files:
        if not cached:
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(block):
                pass
    return time.perf_counter() - started


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tree(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(process for child in children for process in _tree(child))]


def _status(pid: int, field: str) -> int:
    """A field of /proc/PID/status in bytes; 0 where the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)
