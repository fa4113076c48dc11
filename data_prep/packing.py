"""Packed sequences as NeMo's GPTSFTPackedDataset reads them, written without NeMo.

Format: nemo 2.7.3, nemo/utils/sequence_packing_utils.py `fill_packing_strategy`: an array of dictionaries with
`input_ids`, `loss_mask` (shifted by one, so that it stands at the token that predicts) and `seq_start_id`. A row of n
tokens takes n − 1 places, since the last token is only a label.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.progress import Progress, quiet, reported
from data_prep.row_format import tokens_and_loss


@dataclass(frozen=True)
class Packing:
    """How full the packed sequences of a split are."""

    rows: int
    sequences: int
    size: int
    fill_ratio: float
    rows_in_fullest: int
    longest_row: int
    emptiest: int
    """Places used in the emptiest sequence."""


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Best-fit decreasing: each row, longest first, goes where it leaves least room.

    Args:
        lengths: places each row takes, none above `size`.
    Returns:
        Indices of the rows of every sequence.
    """
    sequences: list[list[int]] = []
    room: list[tuple[int, int]] = []  # sorted (room left, sequence)
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        place = bisect_left(room, (length, -1))
        if place == len(room):
            left, sequence = size, len(sequences)
            sequences.append([])
        else:
            left, sequence = room.pop(place)
        sequences[sequence].append(index)
        insort(room, (left - length, sequence))
    return sequences


def write_packed(rows: Path, out: Path, tokenizer: Any, size: int, progress: Progress = quiet) -> Packing:
    """Tokenize and pack a JSONL split into `out` (.npy).

    Raises:
        ValueError: a row takes more than `size` places (rendering has cut or dropped those).
    """
    tokens, learnt = [], []
    encode = partial(tokenizer.encode, add_special_tokens=False)
    with rows.open(encoding="utf-8") as lines:
        for line in reported(lines, f"packing {rows.stem}", None, progress):
            ids, loss = tokens_and_loss(json.loads(line), encode)
            tokens.append(np.array(ids, np.int32))
            learnt.append(np.array(loss, bool))
    lengths = [len(ids) - 1 for ids in tokens]
    if lengths and max(lengths) > size:
        raise ValueError(f"a row of {max(lengths) + 1} tokens does not fit into {size}")
    sequences = pack(lengths, size)
    packed = np.empty(len(sequences), object)
    for place, members in enumerate(sequences):
        masks = [[*learnt[m][1:].tolist(), False] for m in members]
        starts = np.cumsum([0, *(len(tokens[m]) for m in members[:-1])]).tolist()
        ids = np.concatenate([tokens[m] for m in members]).tolist()
        packed[place] = {
            "input_ids": ids,
            "loss_mask": [flag for mask in masks for flag in mask],
            "seq_start_id": starts,
        }
    np.save(out, packed, allow_pickle=True)
    used = sum(lengths)
    return Packing(
        rows=len(lengths),
        sequences=len(sequences),
        size=size,
        fill_ratio=used / (len(sequences) * size) if sequences else 0.0,
        rows_in_fullest=max((len(members) for members in sequences), default=0),
        longest_row=max(lengths, default=0),
        emptiest=min((sum(lengths[member] for member in members) for members in sequences), default=0),
    )


def write_metadata(file: Path, packings: Sequence[Packing]) -> None:
    """Write the file that NeMo's `packed_metadata_path` names; training first."""
    metadata = [
        {
            "max_samples_per_bin": p.rows_in_fullest,
            "dataset_max_seqlen": p.longest_row,
            "min_packed_seqlen": p.emptiest,
        }
        for p in packings
    ]
    file.write_text(json.dumps(metadata) + "\n", encoding="ascii")


def as_report(packings: dict[str, Packing]) -> dict[str, dict[str, Any]]:
    """The packings as plain values, for JSON."""
    return {split: asdict(packing) for split, packing in packings.items()}
