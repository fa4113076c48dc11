"""States of Slurm jobs, from sacct and scontrol."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from launch.executors.tunnel import ask

ACTIVE = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "RESIZING", "SUSPENDED", "REQUEUE_HOLD")


@dataclass(frozen=True)
class JobState:
    """State of a job in Slurm's words, its exit status, and its nodes or the reason why it waits."""

    name: str
    exit_code: int = 0
    signal: int = 0
    note: str = ""

    @property
    def active(self) -> bool:
        return self.name in ACTIVE


def job_states(tunnel: Any, ids: list[str]) -> dict[str, JobState]:
    """States by job id: from the controller while it remembers, else from accounting; unknown ids are left out."""
    if not ids:
        return {}
    answer = ask(tunnel, "sacct", "-XnP", "--format=JobIDRaw,State,ExitCode,NodeList", "-j", ",".join(ids))
    states = dict(_from_sacct(line) for line in answer.out.splitlines() if line.count("|") == 3) if answer.ok else {}
    # Accounting lags behind by seconds, and is not everywhere; the controller forgets by MinJobAge.
    for job in ids:
        if job not in states or states[job].active:
            shown = ask(tunnel, "scontrol", "-o", "show", "job", job)
            if shown.ok and "JobState=" in shown.out:
                states[job] = _from_scontrol(shown.out)
    return states


def _from_sacct(line: str) -> tuple[str, JobState]:
    job, state, code, nodes = line.split("|")
    status, _, signal = code.partition(":")
    return job, JobState(state.split()[0], int(status or 0), int(signal or 0), nodes)


def _from_scontrol(line: str) -> JobState:
    fields = dict(re.findall(r"(\w+)=(\S+)", line))
    status, _, signal = fields.get("ExitCode", "0:0").partition(":")
    waiting = fields["JobState"] == "PENDING"
    note = fields.get("Reason", "") if waiting else fields.get("NodeList", "").replace("(null)", "")
    return JobState(fields["JobState"], int(status), int(signal), note)
