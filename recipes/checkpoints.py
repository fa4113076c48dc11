"""Which checkpoint of a run stands for what. Nothing here imports NeMo."""

from __future__ import annotations

from pathlib import Path

from errors import CheckpointError
from recipes.pipeline import RunFolder


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint that a training in `folder` ended with.

    Raises:
        CheckpointError: there is none that is whole.
    """
    found = [path for path in (folder / "checkpoints").glob("*-last") if path.is_dir()]
    # NeMo marks a checkpoint as unfinished by a file beside it until every rank has written.
    finished = [path for path in found if not path.with_name(path.name + "-unfinished").exists()]
    if not finished:
        raise CheckpointError(f"{folder} holds no finished checkpoint: launch the recipe again, it goes on from there.")
    return max(finished, key=lambda path: path.stat().st_mtime)


def start_of(run: RunFolder) -> Path:
    """What fine-tuning starts from: the pretrained base of a rehearsal, else the imported one."""
    return last_checkpoint(run.pretrain) if run.recipe.pretraining else run.base


def tuned_of(run: RunFolder) -> Path:
    """What fine-tuning ended with: an adapter where the recipe has `peft`, else a whole model."""
    return last_checkpoint(run.finetune)


def exported_parts(path: Path) -> tuple[Path, Path | None, Path]:
    """Of a run folder: the model to export, the adapter to merge into it, and the import that has its config.

    Raises:
        ConfigurationError: it is no run folder. CheckpointError: its training has not finished.
    """
    run = RunFolder.open(path)
    tuned = tuned_of(run)
    return (start_of(run), tuned, run.base) if run.recipe.peft else (tuned, None, run.base)
