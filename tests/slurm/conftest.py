"""The cluster, once a session, and the command line on its login node."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Ran, nemo_run, wait_until
from tests.slurm import cluster as slurm

PROFILE = """\
executor: slurm
gpus_per_node: 8
environment:
  GLOO_SOCKET_IFNAME: lo
  OMP_NUM_THREADS: "1"
"""


@dataclass(frozen=True)
class Login:
    """A folder on the login node from which runs are launched."""

    cluster: slurm.Cluster
    cwd: Path

    def command(self, *arguments: str | Path, timeout: int = 600) -> Ran:
        """`nemo-run …` here."""
        return nemo_run(*arguments, cwd=self.cwd, timeout=timeout)

    def launch(self, recipe: Path, *arguments: str, timeout: int = 900) -> Ran:
        """`nemo-run launch RECIPE --cluster cluster.yaml …` here."""
        return self.command("launch", recipe, "--cluster", "cluster.yaml", *arguments, timeout=timeout)

    def start_again(self, job: str) -> None:
        """Let a requeued job start, which else waits two minutes."""
        wait_until(
            lambda: self.cluster.state(job) not in ("RUNNING", "COMPLETING"), 300, "the end of the job's first try"
        )
        # Slurm 22.05 kills it ("Job credential revoked") when it starts in the second in which the first try ended
        time.sleep(3)
        self.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    if reason := slurm.missing():
        pytest.skip(f"no Slurm here: {reason}")
    running = slurm.start(tmp_path_factory.mktemp("slurm") / "cluster")
    yield running
    running.run("scancel", "--user=root", check=False)
    running.stop()


@pytest.fixture(scope="module")
def login(cluster: slurm.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Login]:
    cwd = tmp_path_factory.mktemp("login")
    (cwd / "cluster.yaml").write_text(PROFILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        patch.setenv("NEMORUN_HOME", str(cwd / "home"))
        yield Login(cluster, cwd)


def jobs_of(ran: Ran) -> dict[str, str]:
    """Job ids by stage, as a launch printed them."""
    return dict(re.findall(r"^(\w+): job (\d+)$", ran.out, re.M))
