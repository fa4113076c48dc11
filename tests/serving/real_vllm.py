"""The real vLLM of `make serving-env`, started by `nemo-run serve`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

VLLM = REPOSITORY / ".serving" / "bin" / "vllm"


def require_vllm() -> Path:
    """The command of the installed server; skip where there is none or it cannot run."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if " avx2" not in flags:
        pytest.skip("this processor has no AVX2, which vLLM needs on a CPU")
    if not VLLM.is_file():
        pytest.skip("vLLM is not there: make serving-env installs it (2 GB)")
    return VLLM


class Served:
    """`nemo-run serve` in a process of its own; as a context, from when it serves until Ctrl-C."""

    def __init__(self, folder: Path, port: int, log: Path, *options: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        words = ["serve", str(folder), "--port", str(port), "--vllm", str(require_vllm()), *options]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "launch.cli", *words], cwd=REPOSITORY, env=environment, stdout=file, stderr=file
            )

    def __enter__(self) -> Served:
        try:
            self.wait()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, seconds: float = 420) -> None:
        """Return when it says that it serves."""
        end = time.monotonic() + seconds
        while f"at {self.url}; Ctrl-C ends it" not in self.said:
            assert self.process.poll() is None, self.said[-3000:]
            assert time.monotonic() < end, self.said[-3000:]
            time.sleep(0.5)

    def end(self) -> int:
        """Its exit status after Ctrl-C."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(90)

    def kill(self) -> None:
        """Kill the server, as a machine that goes down does, and wait for the command to notice."""
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout.split()
        for child in children:
            os.killpg(int(child), signal.SIGKILL)
        assert self.process.wait(90) == 1
        assert "error: the server ended with status -9" in self.said
