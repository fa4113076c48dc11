"""The code that executors ship to a stage's machine: this package's files, committed or not."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nemo_run as run

from common.repository import PACKAGES, REPOSITORY


@dataclass(kw_only=True)
class CodePackager(run.Packager):
    """Packs the packages of this repository; unlike NeMo-Run's GitArchivePackager, uncommitted work goes along."""

    def package(self, path: Path, job_dir: str, name: str) -> str:
        """Write `JOB_DIR/NAME.tar.gz` and return its path."""
        archive = os.path.join(job_dir, f"{name}.tar.gz")
        with tarfile.open(archive, "w:gz") as tar:
            for file in code_files():
                tar.add(file, file.relative_to(REPOSITORY))
        return archive


def code_files() -> Iterator[Path]:
    """Every file that a stage's process may need, in a stable order."""
    for package in PACKAGES:
        for file in sorted((REPOSITORY / package).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                yield file
