"""Megatron-Bridge's folders: the iteration that is meant, and the small files beside its tensors.

```
ROOT/latest_checkpointed_iteration.txt   latest_train_state.pt   iter_0000000/
iter_0000000/.metadata  __0_0.distcp …  common.pt  metadata.json  run_config.yaml  train_state.pt  tokenizer/  hf/
```
Source: megatron-bridge 0.6.2, training/checkpointing.py (save_checkpoint) and training/utils/checkpoint_utils.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from common.errors import CheckpointError
from common.foreign import file_in
from converters.storage.checked_folder import load_saved

RUN_CONFIG = "run_config.yaml"
TOKENIZER = "tokenizer"
HF = "hf"
"""Folder of an iteration for Hugging Face's files; ours holds config.json and what a folder of theirs has beside it."""
TRAIN_STATE, LATEST, TRACKER = "train_state.pt", "latest_train_state.pt", "latest_checkpointed_iteration.txt"
COMMON = {
    "checkpoint_version": 3.0,
    "iteration": 0,
    "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
}
"""What common.pt says of a model that no training has saved."""


def is_bridge(folder: Path) -> bool:
    """Whether a folder is a Megatron-Bridge checkpoint: the root with its iterations, or one of them."""
    return _is_iteration(folder) or any((folder / name).is_file() for name in (LATEST, TRACKER))


def iteration_of(folder: Path) -> Path:
    """The folder of the iteration that is meant: `folder` itself, or the latest one that its root names.

    Raises:
        CheckpointError: the root's files are damaged, or name an iteration that is not there.
    """
    if _is_iteration(folder):
        return folder
    name, where = _latest(folder)
    if not _is_iteration(folder / name):
        there = ", ".join(sorted(path.name for path in folder.glob("iter_*"))) or "none"
        raise CheckpointError(f"{where} names {name}, which is no whole checkpoint (there: {there}): name one of them.")
    return folder / name


def iteration_in(root: Path) -> Path:
    """Where a new checkpoint's only iteration stands."""
    return root / "iter_0000000"


def write_states(root: Path) -> None:
    """Write the files that name the iteration, as of a model that has not been trained."""
    counts = ("step", "consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")
    # training/state.py: TrainState.state_dict; the operations as save_checkpoint replaces them
    state = {name: torch.tensor(0, dtype=torch.int64) for name in counts}
    state["floating_point_operations_so_far"] = torch.tensor(0, dtype=torch.float32)
    state |= {name: torch.tensor(False) for name in ("do_train", "do_valid", "do_test")}
    file = iteration_in(root) / TRAIN_STATE
    torch.save(state, file)
    shutil.copyfile(file, root / LATEST)
    (root / TRACKER).write_text("0")


def _is_iteration(folder: Path) -> bool:
    return (folder / ".metadata").is_file() and (folder / "metadata.json").is_file()


def _latest(root: Path) -> tuple[str, Path]:
    """Name of the latest iteration's folder, and the file that says so, in Megatron-Bridge's own order."""
    if (root / LATEST).is_file():
        state = load_saved(root / LATEST)
        step = state.get("step") if isinstance(state, dict) else None
        if isinstance(step, torch.Tensor) and step.numel() == 1 and not step.is_floating_point():
            return f"iter_{int(step):07d}", root / LATEST
        raise CheckpointError(f"{root / LATEST} says no step: name the folder of an iteration.")
    said = file_in(root, TRACKER).read_text(encoding="utf-8", errors="replace").strip()
    if said == "release":
        return said, root / TRACKER
    if not said.isdecimal():
        raise CheckpointError(f"{root / TRACKER} holds no number: name the folder of an iteration.")
    return f"iter_{int(said):07d}", root / TRACKER
