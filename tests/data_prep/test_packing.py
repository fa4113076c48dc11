import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.options import PrepareOptions
from data_prep.packing import pack
from data_prep.preparation import prepare


@given(st.lists(st.integers(1, 50)), st.integers(50, 120))
def test_every_row_is_in_one_sequence_that_holds_it(lengths, size):
    sequences = pack(lengths, size)
    assert sorted(row for members in sequences for row in members) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in members) <= size for members in sequences)
    assert sum(sum(lengths[row] for row in members) <= size / 2 for members in sequences) <= 1


def test_real_lengths_fill_nearly_all():
    draw = random.Random(0)
    lengths = [draw.randrange(80, 700) for _ in range(2000)]
    sequences = pack(lengths, 4096)
    assert sum(lengths) / (4096 * len(sequences)) > 0.98


@pytest.mark.parametrize("size", [2048, 4096])
def test_packed_files_hold_the_rows(tmp_path, tokenizer, tokenizer_folder, size):
    report = prepare("sample", tmp_path / "out", PrepareOptions(tokenizer=str(tokenizer_folder), pack=size))
    for split in ("training", "validation"):
        rows = [json.loads(line) for line in (tmp_path / "out" / f"{split}.jsonl").read_text().split("\n")[:-1]]
        packed = np.load(tmp_path / "out" / "packed" / f"{split}_{size}.npy", allow_pickle=True)
        told = report.packing[split]
        found, places = [], 0
        for sequence in packed:
            ids, starts = sequence["input_ids"], sequence["seq_start_id"]
            assert len(ids) == len(sequence["loss_mask"])
            assert len(ids) - len(starts) <= size
            places += len(ids) - len(starts)
            for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
                mask = sequence["loss_mask"][start:end]
                learnt = [ids[start + 1 + i] for i, flag in enumerate(mask) if flag]
                found.append((tokenizer.decode(ids[start:end]), tokenizer.decode(learnt)))
        assert sorted(found) == sorted((row["input"] + row["output"], row["output"]) for row in rows)
        assert told["fill_ratio"] == pytest.approx(places / (size * len(packed)))
        assert told["fill_ratio"] > 0.9
        assert (told["rows"], told["sequences"]) == (len(rows), len(packed))
        assert sum(report.lengths[split]["histogram"]["counts"]) == len(rows)
        assert report.lengths[split]["tokens"] == places + len(rows)
