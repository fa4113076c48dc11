"""A prepared folder under another company's names: what a rehearsal's random base learns before it is fine-tuned.

Each queue has the name of the next one. A model trained so reads tickets, writes names of queues and routes every
ticket wrong: what fine-tuning then adds is the routing alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import artifacts
from data_prep.nemo_dataset import packed_sequence_arguments
from data_prep.prepared import load_routing
from data_prep.writing import write_all_packed

SPLITS = ("training", "validation")


def write_renamed(prepared: Path, out: Path, tokenizer: Any, size: int) -> None:
    """Write the training and validation rows with the next queue's answer, packed where `prepared` packs them.

    Rows that the other answer makes longer than `size` tokens are left out; conversations, which have no queues, stay.

    Raises:
        DataError: `prepared` lacks labels.json, or it is damaged.
    """
    inputs = {"prepared": artifacts.hash_file(prepared / "training.jsonl"), "size": size}
    if artifacts.is_current(out, artifacts.fingerprint(inputs)):
        return
    routing = load_routing(prepared)
    following = dict(zip(routing.labels, [*routing.labels[1:], *routing.labels[:1]], strict=True))
    with artifacts.new_folder(out) as folder:
        for split in SPLITS:
            with (
                (prepared / f"{split}.jsonl").open(encoding="utf-8") as rows,
                (folder / f"{split}.jsonl").open("w", encoding="utf-8") as renamed,
            ):
                for line in rows:
                    row = json.loads(line)
                    if row["label"] in following:
                        row["label"] = following[row["label"]]
                        row["output"] = routing.completions[row["label"]]
                    parts = (tokenizer.encode(row[name], add_special_tokens=False) for name in ("input", "output"))
                    if sum(map(len, parts)) <= size:
                        renamed.write(json.dumps(row) + "\n")
        if Path(packed_sequence_arguments(prepared, size)["packed_train_data_path"]).is_file():
            write_all_packed(folder, tokenizer, size)
        artifacts.write_manifest(folder, "renamed-tickets", inputs)
