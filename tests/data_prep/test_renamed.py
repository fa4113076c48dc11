"""The tickets of a rehearsal's base: the same, each queue under the next one's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.options import PrepareOptions
from data_prep.preparation import prepare
from data_prep.prepared import load_routing, training_samples
from data_prep.renamed import write_renamed

SIZE = 512


def rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def test_every_queue_has_the_next_ones_name(tmp_path: Path, tokenizer: Any, tokenizer_folder: Path) -> None:
    data, renamed = tmp_path / "data", tmp_path / "renamed"
    prepare("sample", data, PrepareOptions(tokenizer=str(tokenizer_folder), pack=SIZE, max_length=SIZE))
    write_renamed(data, renamed, tokenizer, SIZE)
    labels = load_routing(data).labels
    assert len(labels) == 10
    for split in ("training", "validation"):
        before, after = rows(data / f"{split}.jsonl"), rows(renamed / f"{split}.jsonl")
        fits = {row["id"] for row in after}
        assert len(after) > 0.95 * len(before), "a longer name drops hardly a ticket"
        for old, new in zip((row for row in before if row["id"] in fits), after, strict=True):
            assert (new["id"], new["input"], new["ticket"]) == (old["id"], old["input"], old["ticket"])
            assert labels.index(new["label"]) == (labels.index(old["label"]) + 1) % 10
            assert new["output"] == new["label"] + "<|return|>"
    packed = np.load(renamed / "packed" / f"training_{SIZE}.npy", allow_pickle=True)
    answers = [tokenizer.decode(s["input_ids"][s["seq_start_id"][0] :]) for s in packed[:3]]
    assert all(any(label + "<|return|>" in text for label in labels) for text in answers)
    assert training_samples(data, SIZE) == len(np.load(data / "packed" / f"training_{SIZE}.npy", allow_pickle=True))
    assert training_samples(data, None) == len(rows(data / "training.jsonl"))


def test_a_second_time_nothing_is_written(tmp_path: Path, tokenizer: Any, tokenizer_folder: Path) -> None:
    data, renamed = tmp_path / "data", tmp_path / "renamed"
    prepare("sample", data, PrepareOptions(tokenizer=str(tokenizer_folder), max_length=SIZE))
    write_renamed(data, renamed, tokenizer, SIZE)
    written = (renamed / "training.jsonl").stat().st_mtime_ns
    write_renamed(data, renamed, tokenizer, SIZE)
    assert (renamed / "training.jsonl").stat().st_mtime_ns == written
    assert not (renamed / "packed").exists()
