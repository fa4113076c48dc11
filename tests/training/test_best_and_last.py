"""What becomes of checkpoints that others replace."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.callbacks.best_and_last import BestAndLast


@pytest.mark.parametrize("saved_aside", [False, True])
def test_a_replaced_checkpoint_is_gone_when_its_mark_is(tmp_path: Path, saved_aside: bool) -> None:
    """However slowly the disk deletes it: what has no mark counts as whole."""
    checkpoint = tmp_path / "step=2"
    (checkpoint / "weights").mkdir(parents=True)
    marked_while_deleted = []

    def delete_slowly(path: str) -> None:
        time.sleep(0.2)
        marked_while_deleted.append(checkpoint.with_name("step=2-unfinished").exists())
        shutil.rmtree(path.removesuffix(".ckpt"))

    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(remove_checkpoint=delete_slowly), callbacks=[])
    callback = BestAndLast(dirpath=tmp_path)
    callback.async_save = saved_aside
    callback._remove_checkpoint(trainer, f"{checkpoint}.ckpt", override_async=True)
    assert marked_while_deleted == [True]
    assert list(tmp_path.iterdir()) == []
    assert callback.async_save is saved_aside
