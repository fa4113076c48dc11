"""Other versions of transformers and PEFT than .venv's, each in a process that has them first in its path."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY, run_to_its_end

OWN, TRANSFORMERS5, PEFT017 = "own", "transformers5", "peft017"
"""PEFT 0.21 with transformers 4.57, which .venv has; with transformers 5.24; PEFT 0.17 with transformers 4.57."""


def environment(program: str) -> dict[str, str]:
    """Of a process with that program; skip where `make foreign-env` has not been run."""
    folder = REPOSITORY / ".foreign" / program
    if program != OWN and not (folder / ".installed").is_file():
        pytest.skip(f".foreign/{program} is not there: make foreign-env fetches it (160 MB for all)")
    paths = os.pathsep.join(map(str, [REPOSITORY] if program == OWN else [folder, REPOSITORY]))
    return os.environ | {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def peft_jobs(program: str, jobs: Sequence[dict[str, Any]], folder: Path) -> None:
    """Have PEFT do the jobs of `foreign/peft_jobs.py`, whose paths are made text."""
    file = folder / f"jobs-{program}.json"
    file.write_text(json.dumps(jobs, default=str))
    script = Path(__file__).parent / "foreign" / "peft_jobs.py"
    done = run_to_its_end([sys.executable, str(script), str(file)], env=environment(program), timeout=300, cwd=folder)
    assert done.status == 0, done.err[-4000:]


def vllm_factors(peft: Path, config: Path, folder: Path) -> dict[str, Any]:
    """What `foreign/vllm_lora.py` read of an adapter; skip where `make serving-env` has not been run."""
    python, out = REPOSITORY / ".serving" / "bin" / "python", folder / "vllm.pt"
    if not python.is_file():
        pytest.skip("vLLM is not there: make serving-env installs it (2 GB)")
    command = [python, Path(__file__).parent / "foreign" / "vllm_lora.py", peft, config, out]
    done = run_to_its_end(list(map(str, command)), env=os.environ | {"PYTHONPATH": ""}, timeout=300, cwd=folder)
    assert done.status == 0, done.err[-4000:]
    return torch.load(out)
