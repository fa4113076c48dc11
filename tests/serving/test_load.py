"""A hundred thousand tickets: every row once, in its order, with its own answer, in the memory that a thousand take."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.conftest import REPOSITORY, free_port
from tests.evaluation.conftest import LABELS
from tests.serving import fast_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MIB = 2**10  # of ru_maxrss, which Linux counts in KiB
# from a small process: at first a child has the memory of the one that forked it, and that counts
MEASURED = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""
FEW, MANY = 1_000, 100_000
BODY = "The printer on the second floor is out of order again, and nobody has come to look at it. " * 8


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, str(Path(fast_server.__file__)), str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                requests.get(f"{url}/v1/models", timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def route(url: str, data: Path, tickets: Path, out: Path) -> int:
    """The most memory that the command had, in MiB."""
    words = ["route", str(tickets), "--endpoint", url, "--data", str(data), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", MEASURED, sys.executable, "-m", "launch.cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return int(done.stderr.splitlines()[-1]) // MIB


def test_memory_does_not_grow_with_the_table(
    server: str, prepared_folder: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The table of 100,000 rows is 76 MB; the command may take 48 MiB more for it than for one of 1,000."""
    taken, seconds = {}, 0.0
    for count in (FEW, MANY):
        tickets, out = tmp_path / f"{count}.csv", tmp_path / f"{count}-routed.csv"
        with tickets.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["body"])
            writer.writerows([f"ticket number {i}: {BODY}"] for i in range(count))
        started = time.perf_counter()
        taken[count] = route(server, prepared_folder, tickets, out)
        seconds = time.perf_counter() - started
        rows = 0
        with out.open(newline="") as lines:
            for rows, row in enumerate(csv.DictReader(lines), 1):
                assert row["body"].startswith(f"ticket number {rows - 1}:")
                assert row["routed_to"] == LABELS[(rows - 1) % len(LABELS)]
        assert rows == count
    record_property("MiB", taken[MANY])
    record_property("rows a second", MANY / seconds)
    print(f"{taken} MiB, {MANY / seconds:.0f} rows a second")
    assert taken[MANY] - taken[FEW] < 48
    assert taken[MANY] < 400
