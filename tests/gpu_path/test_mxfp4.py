"""Triton's decoder of MXFP4, in Triton's interpreter: every byte at every scale, and shapes that fill no program."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import run_to_its_end
from tests.gpu_path.conftest import FOLDER, environment, require
from tests.modeling.test_mxfp4_on_device import CASES, expected

pytestmark = pytest.mark.slow
PROGRAM = """
import sys, torch
from modeling.mxfp4_triton import decode_by_triton
for number, (blocks, scales, bits) in enumerate(torch.load(sys.argv[1])):
    print(number, torch.equal(decode_by_triton(blocks, scales).view(torch.int16), bits))
"""


def test_triton_gives_the_bits_of_the_converters(tmp_path: Path) -> None:
    """In a process of its own: the interpreter is chosen before Triton is imported."""
    torch.save([(*case, expected(*case)) for case in CASES], tmp_path / "cases.pt")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "cases.pt")]
    own = environment(require(FOLDER)) | {"TRITON_INTERPRET": "1"}
    done = run_to_its_end(command, env=own, timeout=200, cwd=tmp_path)
    assert done.status == 0, done.err[-2000:]
    assert done.out.splitlines() == [f"{number} True" for number in range(len(CASES))]
