"""Which checkpoint of a run stands for what. Nothing here imports NeMo."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from errors import CheckpointError
from recipes.pipeline import RunFolder


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint that a training in `folder` ended with.

    Raises:
        CheckpointError: there is none that is whole.
    """
    finished = _finished(folder, "*-last")
    if not finished:
        raise CheckpointError(f"{folder} holds no finished checkpoint: launch the recipe again, it goes on from there.")
    return max(finished, key=step_of)


def best_checkpoint(folder: Path) -> Path:
    """The checkpoint with the lowest validation loss; the last where nothing was validated.

    Raises:
        CheckpointError: there is none that is whole.
    """
    found = {path: loss for path in _finished(folder, "*") if (loss := validation_loss(path)) is not None}
    return min(found, key=lambda path: found[path]) if found else last_checkpoint(folder)


def validation_loss(checkpoint: Path) -> float | None:
    """The validation loss that a checkpoint was kept for; None if it was kept for being the last."""
    named = re.search(r"-val_loss=(\d+\.\d+)(-v\d+)?$", checkpoint.name)
    return float(named[1]) if named else None


def step_of(checkpoint: Path) -> int:
    """The training step that a checkpoint was saved after."""
    named = re.search(r"step=(\d+)", checkpoint.name)
    return int(named[1]) if named else 0


def remove_former_lasts(folder: Path) -> None:
    """Delete checkpoints that were the last before a resumed training's: NeMo keeps what it resumed from."""
    last = last_checkpoint(folder)
    for path in (folder / "checkpoints").glob("*-last"):
        if path == last:
            continue
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)


def _finished(folder: Path, pattern: str) -> list[Path]:
    found = [path for path in (folder / "checkpoints").glob(pattern) if path.is_dir()]
    # NeMo marks a checkpoint as unfinished by a file beside it until every rank has written.
    return [path for path in found if not path.with_name(path.name + "-unfinished").exists()]


def start_of(run: RunFolder) -> Path:
    """What fine-tuning starts from: the pretrained base of a rehearsal, else the imported one."""
    return last_checkpoint(run.pretrain) if run.recipe.pretraining else run.base


def tuned_of(run: RunFolder) -> Path:
    """The best that fine-tuning found: an adapter where the recipe has `peft`, else a whole model."""
    return best_checkpoint(run.finetune)


def exported_parts(path: Path) -> tuple[Path, Path | None, Path]:
    """Of a run folder: the model to export, the adapter to merge into it, and the import that has its config.

    Raises:
        ConfigurationError: it is no run folder. CheckpointError: its training has not finished.
    """
    run = RunFolder.open(path)
    tuned = tuned_of(run)
    return (start_of(run), tuned, run.base) if run.recipe.peft else (tuned, None, run.base)
