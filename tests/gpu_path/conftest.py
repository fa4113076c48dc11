"""One process that sees a GPU that is not there, and what its checks measured."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, run_to_its_end

FOLDER = REPOSITORY / ".gpu-path"
CHECKS = ("model", "layouts", "meta", "backends")


@dataclass(frozen=True)
class Results:
    """What the checks left in a folder."""

    folder: Path
    told: str

    def __getitem__(self, check: str) -> dict[str, Any]:
        found = self.folder / f"{check}.json"
        if not found.is_file():
            output = self.folder / f"{check}.out"
            pytest.fail(
                f"{check} ended early:\n{output.read_text()[-3000:] if output.is_file() else self.told[-3000:]}"
            )
        return json.loads(found.read_text())


def run_checks(engine: Path, folder: Path, *checks: str) -> Results:
    """Run checks with the Transformer Engine of a folder that install.sh filled; skip where there is none."""
    if not (engine / "cuda" / "libcudart.so.13").is_file():
        pytest.skip(f"{engine.name} is not there: make gpu-path-env fetches Transformer Engine's wheels (0.4 GB)")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, engine))),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "tests.gpu_path.worker", str(folder), *checks]
    done = run_to_its_end(command, env=environment, timeout=560, cwd=folder)
    return Results(folder, done.out + done.err)


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_checks(FOLDER, tmp_path_factory.mktemp("gpu_path"), *CHECKS)
