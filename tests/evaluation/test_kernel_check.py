"""The check of a machine's kernels finds a window that is too wide, and YaRN without its factor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation import kernel_check
from evaluation.jobs import KernelJob
from modeling import inference

pytestmark = pytest.mark.slow
JOB = KernelJob("fp32", packed=False)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    inference.initialize()
    yield
    inference.shutdown()


def test_right_kernels(tmp_path: Path) -> None:
    logits, gradients, packed = kernel_check._right(JOB, tmp_path, {})
    assert logits < 1e-4
    assert gradients < 1e-4
    assert packed is None


@pytest.mark.parametrize("wrong", [{"window_size": (32, 0)}, {"yarn_mscale_all_dim": 1.0}], ids=str)
def test_wrong_kernels(tmp_path: Path, wrong: dict[str, object]) -> None:
    logits, gradients, _ = kernel_check._right(JOB, tmp_path, wrong)
    assert logits > 0.05, "more than bf16's tolerance"
    assert gradients > 0.05
