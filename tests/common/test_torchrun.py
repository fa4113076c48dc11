"""A job in two processes on plain torch: what reaches them, what comes back, and what a failure says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import LaunchError
from common.torchrun import run_job
from tests.common.jobs import Addend, AddUp

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
ADDENDS = (Addend(0.5, times=3), Addend(2.0))


def failed(job: AddUp) -> str:
    with pytest.raises(LaunchError) as error, run_job(job, 2):
        pass
    return str(error.value)


def test_two_processes_read_the_job_and_one_file_comes_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with run_job(AddUp(ADDENDS, tmp_path), 2) as out:
        assert json.loads(out.read_text()) == 3.5
        assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [3.5, 3.5]
        logs = [(out.parent / f"job.rank{rank}.log").read_text() for rank in (0, 1)]
    assert not out.parent.exists()
    assert [f"a library greets from rank {rank}\n" in log for rank, log in enumerate(logs)] == [True, True]
    assert capfd.readouterr().out == "2 ranks added up\n", "what libraries print stays in the logs"


def test_a_bug_shows_the_end_of_its_process(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of rank 1: rank 0 raises as well, since its peer is gone."""
    lines = failed(AddUp(ADDENDS, tmp_path, ends=1, end="bug")).splitlines()
    assert lines[0] == "tests.common.jobs:add_up failed in 2 processes."
    assert lines[-1] == "RuntimeError: rank 1 is broken"
    assert len(lines) <= 16
    assert capfd.readouterr().out == ""


def test_a_refusal_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing of what libraries said stands before it; the command line prints it once."""
    assert failed(AddUp(ADDENDS, tmp_path, end="refusal")) == "tickets.csv holds no tickets: name another file."
    assert capfd.readouterr().out == ""


def test_a_job_that_writes_nothing_has_failed(tmp_path: Path) -> None:
    assert failed(AddUp(ADDENDS, tmp_path, end="silence")).startswith("tests.common.jobs:add_up failed in 2 processes.")
    assert json.loads((tmp_path / "1.json").read_text()) == 3.5
