"""Preparation beside the loop of NeMo's ticket-routing tutorial: seconds and memory, in the same run.

    python benchmarks/prepare.py [TICKETS.csv] [--rows 28587]

Without a file, that many sample tickets are written first. The tutorial's loop reads with pandas, drops tickets without
a subject, renders plain prompts row by row and splits 90/9/1 at random; it neither cleans nor looks for duplicates.
Each runs in a process of its own; seconds include its start, memory is its largest resident set.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TUTORIAL = """
import json, sys
import pandas as pd
frame = pd.read_csv(sys.argv[1]).dropna(subset=["subject", "body"])
rows = []
for _, ticket in frame.iterrows():
    prompt = f"Route the ticket to a queue.\\n\\n{ticket['subject']}\\n{ticket['body']}\\n\\nQueue:"
    rows.append({"input": prompt, "output": ticket["queue"]})
rows = pd.DataFrame(rows).sample(frac=1, random_state=1234).to_dict("records")
borders = 0, int(0.9 * len(rows)), int(0.99 * len(rows)), len(rows)
for name, start, end in zip(("training", "validation", "test"), borders, borders[1:]):
    with open(f"{sys.argv[2]}/{name}.jsonl", "w") as file:
        for row in rows[start:end]:
            file.write(json.dumps(row) + "\\n")
"""


@dataclass(frozen=True)
class Measured:
    """A finished process: seconds from start to end, processor seconds, MiB of its largest resident set."""

    seconds: float
    processor: float
    memory: float


def measure(*command: str) -> Measured:
    """Run a command and wait for it.

    Raises:
        SystemExit: it failed.
    """
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"{' '.join(command[:4])} … failed")
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def write_sample(file: Path, rows: int) -> None:
    """Sample tickets as a CSV file, ten thousand at a time."""
    sys.path.insert(0, str(REPOSITORY))
    from data_prep.sample import COLUMNS, sample_tickets

    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        for seed, start in enumerate(range(0, rows, 10_000)):
            writer.writerows(sample_tickets(min(10_000, rows - start), seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tickets", nargs="?", type=Path, help="CSV with subject, body and queue")
    parser.add_argument("--rows", type=int, default=28_587, help="sample tickets, where no file is named")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = arguments.tickets or folder / "sample.csv"
        if arguments.tickets is None:
            write_sample(source, arguments.rows)
        (folder / "tutorial").mkdir()
        tutorial = measure(sys.executable, "-c", TUTORIAL, str(source), str(folder / "tutorial"))
        ours = measure(sys.executable, "-m", "launch.cli", "prepare", str(source), "--out", str(folder / "ours"))
        report = json.loads((folder / "ours" / "report.json").read_text())
        kept = sum(map(_lines, (folder / "tutorial").iterdir()))
    rows, duplicates = report["rows"], report["duplicates"]
    print(f"{rows:,} tickets, {os.cpu_count()} cores{'' if arguments.tickets else ', sample'}")
    print(f"{'':24}{'seconds':>9}{'processor s':>13}{'tickets/s':>11}{'MiB':>7}{'kept':>10}")
    for title, run, left in (("tutorial's pandas loop", tutorial, kept), ("nemo-run prepare", ours, _kept(report))):
        speed = rows / run.seconds
        print(f"{title:24}{run.seconds:9.1f}{run.processor:13.1f}{speed:11,.0f}{run.memory:7.0f}{left:10,}")
    print(
        f"ratio {ours.seconds / tutorial.seconds:.2f} in time, {ours.memory / tutorial.memory:.2f} in memory; ours also"
    )
    print(
        f"cleaned the tickets, dropped {duplicates['exact_copies']:,} copies, kept "
        f"{duplicates['near_duplicate_groups']:,} groups of near duplicates together and wrote the report"
    )


def _lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for _ in lines)


def _kept(report: dict[str, dict[str, int]]) -> int:
    return sum(report["splits"].values())


if __name__ == "__main__":
    main()
