"""The checkpoints of a run: start, best, last, tuned, exported. Nothing here imports NeMo."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from common.errors import CheckpointError
from converters.nemo_folder import METADATA, TOKENIZER, WEIGHTS, config_file_of, config_of, is_nemo, trained_on
from converters.storage.damage import damage_of
from modeling.hf_config import GptOssConfig
from pipeline.run_folder import RunFolder, run_above

_NO_CONFIG = "name a checkpoint of a run, or one that was imported"


@dataclass(frozen=True)
class Parts:
    """A model as NeMo keeps it: its weights, an adapter on them or None, and the import that has its config.json."""

    weights: Path
    adapter: Path | None
    like: Path

    @property
    def config(self) -> GptOssConfig:
        """The shapes of the model."""
        return config_of(self.like, _NO_CONFIG)

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that the model was trained with."""
        return self.like / "context" / TOKENIZER

    def resolved(self) -> Parts:
        """The same parts with absolute paths."""
        return Parts(self.weights.resolve(), self.adapter.resolve() if self.adapter else None, self.like.resolve())


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint that a training in `folder` ended with.

    Raises:
        CheckpointError: there is none that is whole.
    """
    finished = _finished(folder, "*-last")
    if not finished:
        raise CheckpointError(f"{folder} holds no finished checkpoint: launch the recipe again, it goes on from there.")
    return max(finished, key=step_of)


def newest_whole(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The checkpoint that a training in `folder` goes on from, None where there is none, and the damage of newer ones.

    Raises:
        CheckpointError: there are some, and all are damaged.
    """
    damaged: dict[Path, str] = {}
    for path in sorted(_finished(folder, "*"), key=lambda path: (step_of(path), path.name), reverse=True):
        linked = path.with_name(path.resolve().name)  # the last is a link where it is the best
        if linked in damaged:
            continue
        if (damage := damage_of(linked / WEIGHTS)) is None:
            return path, damaged
        damaged[linked] = damage
    if damaged:
        raise CheckpointError(
            f"no checkpoint of {folder} is whole ({next(iter(damaged.values()))}): delete the folder to train anew."
        )
    return None, {}


def set_aside(damaged: Path) -> Path:
    """Move a damaged checkpoint out of NeMo's sight, without the link to it; returns where it lies now."""
    for path in damaged.parent.iterdir():
        if path.is_symlink() and path.resolve() == damaged.resolve():
            path.unlink()
    places = damaged.parents[1] / "damaged"
    places.mkdir(exist_ok=True)
    taken = {path.name for path in places.iterdir()}
    names = (damaged.name + (f".{number}" if number else "") for number in range(len(taken) + 1))
    return damaged.rename(places / next(name for name in names if name not in taken))


def loaded_with(checkpoint: Path) -> list[Path]:
    """Checkpoints that NeMo loads when a training goes on from one: itself, and what an adapter was put on.

    Raises:
        CheckpointError: an adapter does not say what it was put on.
    """
    on = [trained_on(checkpoint)] if (checkpoint / WEIGHTS / METADATA).is_file() else []
    return [checkpoint, *on]


def best_checkpoint(folder: Path) -> Path:
    """The checkpoint with the lowest validation loss; the last where nothing was validated.

    Raises:
        CheckpointError: there is none that is whole.
    """
    losses = {path: loss for path in _finished(folder, "*") if (loss := validation_loss(path)) is not None}
    return min(losses, key=lambda path: losses[path]) if losses else last_checkpoint(folder)


def validation_loss(checkpoint: Path) -> float | None:
    """The validation loss that a checkpoint was kept for; None if it was kept for being the last."""
    named = re.search(r"-val_loss=(\d+\.\d+)(-v\d+)?$", checkpoint.name)
    return float(named[1]) if named else None


def step_of(checkpoint: Path) -> int:
    """The training step that a checkpoint was saved after."""
    named = re.search(r"step=(\d+)", checkpoint.name)
    return int(named[1]) if named else 0


def superseded(folder: Path, step: int, best: Collection[str]) -> list[Path]:
    """Checkpoints that nobody needs once that of `step` is written.

    The newest before it is still needed: if this one turns out to be damaged, training goes on from there.

    Args:
        best: names of those with the lowest validation losses, which stay.
    """
    former = [path for path in _finished(folder, "*") if 0 < step_of(path) < step]  # 0: a name of somebody's own
    newest = max(map(step_of, former), default=0)
    return sorted(path for path in former if step_of(path) < newest and path.name not in best)


def keep_best_and_last(folder: Path, best: int = 1) -> None:
    """Delete the other checkpoints of a training that has ended; a negative `best` keeps all that were validated."""
    last = last_checkpoint(folder)
    losses = {path: loss for path in _finished(folder, "*") if (loss := validation_loss(path)) is not None}
    ranked = sorted(losses, key=lambda path: losses[path])
    kept = {last, last.with_name(last.resolve().name), *(ranked[:best] if best >= 0 else ranked)}
    for path in _finished(folder, "*"):
        if path not in kept and step_of(path) and not path.is_symlink():
            shutil.rmtree(path)
    for path in (folder / "checkpoints").glob("*-last"):
        # NeMo 2.7.3 deletes what such a link leads to when a training goes on (nemo_topk_check_previous_run)
        if path.is_symlink() and path not in kept:
            path.unlink()


def _finished(folder: Path, pattern: str) -> list[Path]:
    folders = [path for path in (folder / "checkpoints").glob(pattern) if path.is_dir()]
    # NeMo marks a checkpoint as unfinished by a file beside it until every rank has written.
    return [path for path in folders if not path.with_name(path.name + "-unfinished").exists()]


def start_of(run: RunFolder) -> Path:
    """The checkpoint that fine-tuning starts from: a rehearsal's pretrained base, else the imported one."""
    return last_checkpoint(run.pretrain) if run.recipe.pretraining else run.base


def tuned_of(run: RunFolder) -> Path:
    """The best checkpoint of fine-tuning: an adapter where the recipe has `peft`, else a whole model."""
    return best_checkpoint(run.finetune)


def base_of(run: RunFolder) -> Parts:
    """The model before fine-tuning, which the tuned one is compared with."""
    return Parts(start_of(run), None, run.base)


def exported_parts(path: Path) -> Parts:
    """The tuned model of a run folder.

    Raises:
        ConfigurationError: it is no run folder. CheckpointError: its training has not finished.
    """
    run = RunFolder.open(path)
    return _of_run(run, tuned_of(run))


def parts_of(checkpoint: Path) -> Parts:
    """Parts of a NeMo checkpoint, alone or in a run folder: a whole model, or an adapter with its base.

    Raises:
        CheckpointError: it is no checkpoint, or nothing says what model it is of.
    """
    if not is_nemo(checkpoint):
        raise CheckpointError(f"{checkpoint} holds no weights/: name a run, a NeMo checkpoint or an exported folder.")
    run = run_above(checkpoint)
    if run is not None and checkpoint.parent.parent.resolve() == run.finetune.resolve():
        return _of_run(run, checkpoint)
    is_adapter = (checkpoint / "weights" / METADATA).is_file()
    weights = trained_on(checkpoint) if is_adapter else checkpoint
    like = run.base if run is not None else weights
    config_file_of(like, _NO_CONFIG)
    return Parts(weights, checkpoint if is_adapter else None, like)


def kept_checkpoints(run: RunFolder) -> list[Path]:
    """All checkpoints of the fine-tuning that are whole, the oldest first; the last may be a link to the best."""
    kept = [path for path in _finished(run.finetune, "*") if not path.is_symlink()]
    return sorted(kept, key=step_of)


def name_of(checkpoint: Path) -> str:
    """A readable name of a training's checkpoint: its step and its validation loss, or `last`."""
    loss = validation_loss(checkpoint)
    return f"step {step_of(checkpoint)}, " + ("last" if loss is None else f"validation loss {loss:.3f}")


def _of_run(run: RunFolder, tuned: Path) -> Parts:
    return Parts(start_of(run), tuned, run.base) if run.recipe.peft else Parts(tuned, None, run.base)
