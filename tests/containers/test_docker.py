"""The CPU image built for real, and the tiny recipe rehearsed in it by `launch --executor docker`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Ran, nemo_run
from tests.containers import engine as containers

pytestmark = [pytest.mark.slow, pytest.mark.foreign, pytest.mark.network, pytest.mark.timeout(3600)]

TINY = REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py"
IMAGE = "localhost/gpt-oss-nemo:cpu"
SECRET = "hf_only-in-the-container"
SHORT = ("name=short", "pretraining.max_steps=20", "trainer.max_steps=12", "evaluation.max_tickets=40")
PROFILE = f"""\
executor: docker
container:
  image: {IMAGE}
secrets: [HF_TOKEN]
docker:
  shm_size: 1g
  ulimits: ["nofile=1024:1024", "nproc=1000:1000"]
"""


@dataclass(frozen=True)
class Workstation:
    """A folder to launch from, with a docker that answers."""

    engine: containers.Engine
    cwd: Path

    def launch(self, *arguments: str) -> Ran:
        return nemo_run("launch", TINY, "--cluster", "cluster.yaml", *SHORT, *arguments, cwd=self.cwd, timeout=1800)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The same in the background."""
        command = [sys.executable, "-m", "launch.cli", "launch", str(TINY), "--cluster", "cluster.yaml", *SHORT]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        return subprocess.Popen(
            [*command, *arguments],
            cwd=self.cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def workstation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workstation]:
    if reason := containers.missing():
        pytest.skip(f"no containers here: {reason}")
    if not os.environ.get("TEST_CONTAINERS"):
        pytest.skip("builds an image of several GB: set TEST_CONTAINERS=1")
    # A folder that stays keeps the images from one session to the next.
    folder = Path(os.environ.get("TEST_CONTAINERS_FOLDER") or tmp_path_factory.mktemp("podman"))
    cwd = tmp_path_factory.mktemp("workstation")
    (cwd / "cluster.yaml").write_text(PROFILE)
    with containers.running(folder) as engine, pytest.MonkeyPatch.context() as patch:
        known = engine.run("images", "--format={{.Repository}}:{{.Tag}}").split()
        if IMAGE not in known:
            base = containers.BASE if containers.BASE in known else containers.make_base(engine)
            arguments = ("--network=host", *containers.pip_options(), f"--build-arg=BASE={base}")
            file = REPOSITORY / "containers" / "Dockerfile.cpu"
            engine.run("build", *arguments, "-f", str(file), "-t", IMAGE, ".", cwd=REPOSITORY, timeout=3000)
        patch.setenv("DOCKER_HOST", engine.socket)
        patch.setenv("NEMORUN_HOME", str(cwd / "home"))
        patch.setenv("HF_TOKEN", SECRET)
        yield Workstation(engine, cwd)


def test_the_image_knows_its_health(workstation: Workstation) -> None:
    told = workstation.engine.run("run", "--rm", "--network=host", IMAGE, "python", "containers/health.py")
    assert "nemo 2.7.3" in told
    assert "device: CPU" in told
    assert workstation.engine.run("run", "--rm", "--network=host", IMAGE, "id", "-u").strip() == "1000"


def test_the_tiny_recipe_interrupted_and_relaunched(workstation: Workstation) -> None:
    run = workstation.cwd / "runs" / "short"
    process = workstation.start()
    until = time.monotonic() + 900
    while not (run / "stages" / "import.json").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(1)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 130, printed
    assert workstation.engine.run("ps", "--quiet").strip() == "", "a container went on after its launch ended"

    again = workstation.launch()
    assert again.status == 0, again.out + again.err
    assert again.out.count("current, skipped") >= 3
    details = json.loads((run / "stages" / "export.json").read_text())["details"]
    assert details["largest_logit_difference"] <= 1e-3
    assert {file.stat().st_uid for file in run.rglob("*")} == {os.getuid()}
    written = [file for file in workstation.cwd.rglob("*") if file.is_file()]
    assert [file for file in written if SECRET.encode() in file.read_bytes()] == []


def test_a_failing_stage_is_named(workstation: Workstation) -> None:
    (workstation.cwd / "damaged.csv").write_text("queue,priority\na,b\n")
    ran = workstation.launch("name=failing", "data.source=damaged.csv", "--until", "prepare")
    assert ran.status == 1
    assert "stage prepare failed" in ran.err
    assert "damaged.csv" in ran.err


def test_an_image_that_is_not_there(workstation: Workstation) -> None:
    ran = workstation.launch("name=missing", "cluster.container.image=localhost/none:1")
    assert ran.status == 1
    assert "image localhost/none:1 is not here and cannot be pulled" in ran.err
