"""How NeMo's fine-tuning dataset must be called so that it reads our rows as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NEMO_DATASET_KWARGS: dict[str, Any] = {
    # nothing between prompt and answer; the default template puts a space there
    "prompt_template": "{input}{output}",
    # rows carry their own control tokens: the end token is part of `output`
    "add_bos": False,
    "add_eos": False,
    "add_sep": False,
    # a row that is too long loses text of the prompt, never of the answer
    "truncation_field": "input",
    "answer_only_loss": True,
}


def packed_sequence_arguments(folder: Path, size: int) -> dict[str, Any]:
    """Arguments of NeMo's `PackedSequenceSpecs` for a folder that was prepared with `pack=size`."""
    packed = folder / "packed"
    return {
        "packed_sequence_size": size,
        "packed_train_data_path": str(packed / f"training_{size}.npy"),
        "packed_val_data_path": str(packed / f"validation_{size}.npy"),
        "packed_metadata_path": str(packed / f"{size}_metadata.jsonl"),
    }
