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
CHECKS = ("model", "layouts", "backends", "meta", "training")


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


def require(engine: Path) -> Path:
    """A folder that install.sh filled; skip where it has not."""
    if not (engine / "cuda" / "libcudart.so.13").is_file():
        pytest.skip(f"{engine.name} is not there: make gpu-path-env fetches Transformer Engine's wheels (0.6 GB)")
    return engine


def environment(*engines: Path) -> dict[str, str]:
    """Of a process that imports Transformer Engine from these folders."""
    paths = os.pathsep.join(map(str, (REPOSITORY, *engines)))
    switches = {"NVTE_FLASH_ATTN": "1"}  # as somebody's shell has it: the recipe's backend holds all the same
    return os.environ | switches | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("gpu_path")
    command = [sys.executable, "-m", "tests.gpu_path.worker", str(folder), *CHECKS]
    done = run_to_its_end(command, env=environment(require(FOLDER)), timeout=900, cwd=folder)
    return Results(folder, done.out + done.err)


@pytest.fixture(scope="session")
def newest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the newest Transformer Engine takes, asked in a process of its own."""
    folder = tmp_path_factory.mktemp("newest")
    engines = (require(REPOSITORY / ".gpu-path-newest"), require(FOLDER))
    command = [sys.executable, "-m", "tests.gpu_path.newest", str(folder)]
    done = run_to_its_end(command, env=environment(*engines), timeout=200, cwd=folder)
    assert done.status == 0, done.err[-3000:]
    return json.loads((folder / "newest.json").read_text())
