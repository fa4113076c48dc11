"""What prepare writes through NeMo's own dataset classes: which tokens carry loss."""

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common.errors import DataError
from data_prep.nemo_dataset import NEMO_DATASET_KWARGS, packed_sequence_arguments
from data_prep.options import PrepareOptions
from data_prep.preparation import prepare
from data_prep.row_format import steps_in, tokens_and_loss
from tests.data_prep.generated_chats import chat

pytestmark = pytest.mark.slow
SIZE = 2048


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tokenizer_folder) -> Path:
    pytest.importorskip("nemo.collections.llm")
    folder = tmp_path_factory.mktemp("prepared") / "out"
    prepare("sample", folder, PrepareOptions(tokenizer=str(tokenizer_folder), pack=SIZE))
    return folder


def data_module(folder: Path, tokenizer_folder: Path, *, size: int = SIZE, **arguments: Any) -> Any:
    from nemo.collections.common.tokenizers import AutoTokenizer

    from training.ticket_data import TicketDataModule

    tokenizer = AutoTokenizer(str(tokenizer_folder))
    return TicketDataModule(
        folder,
        seq_length=size,
        tokenizer=tokenizer,
        micro_batch_size=1,
        dataset_kwargs=NEMO_DATASET_KWARGS,
        **arguments,
    )


def rows_of(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().split("\n")[:-1]]


def test_tokens_with_loss_are_the_label_and_the_end_token(prepared, tokenizer, tokenizer_folder):
    module = data_module(prepared, tokenizer_folder)
    dataset = module._create_dataset(module.train_path, **module.dataset_kwargs)
    rows = rows_of(prepared, "training")
    assert len(dataset) == len(rows)
    assert len({row["label"] for row in rows[:100]}) >= 8
    for index, row in enumerate(rows[:100]):
        batch = dataset.collate_fn([dataset[index]])
        tokens, labels, mask = (batch[name][0].tolist() for name in ("tokens", "labels", "loss_mask"))
        whole = tokenizer.encode(row["input"] + row["output"], add_special_tokens=False)
        assert tokens[: len(whole) - 1] == whole[:-1]
        answer = [label for label, flag in zip(labels, mask, strict=True) if flag]
        assert answer == [*tokenizer.encode(row["label"], add_special_tokens=False), tokenizer.eos_token_id]
        first = mask.index(1)
        assert labels[:first] == whole[1 : first + 1]
        assert tokenizer.decode(tokens[: first + 1]) == row["input"]


@pytest.mark.parametrize("padded", [False, True])
def test_packed_sequences_carry_the_same_loss(prepared, tokenizer, tokenizer_folder, padded):
    from nemo.collections.llm.gpt.data.packed_sequence import PackedSequenceSpecs

    specs = PackedSequenceSpecs(**packed_sequence_arguments(prepared, SIZE), pad_cu_seqlens=padded)
    module = data_module(prepared, tokenizer_folder, packed_sequence_specs=specs)
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    module.prepare_data()  # finds the files, and packs nothing again
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before
    arguments = module.dataset_kwargs | ({"pad_to_max_length": True} if padded else {})
    for path, split in ((module.train_path_packed, "training"), (module.validation_path_packed, "validation")):
        dataset = module._create_dataset(path, pack_metadata_path=module.pack_metadata, **arguments)
        found = []
        for index in range(len(dataset)):
            batch = dataset.collate_fn([dataset[index]])
            tokens, labels, mask = (batch[name][0].tolist() for name in ("tokens", "labels", "loss_mask"))
            borders = batch["cu_seqlens_unpadded"][0].tolist()
            for start, end in pairwise(borders):
                if end > start and any(mask[start:end]):
                    answer = [label for label, flag in zip(labels[start:end], mask[start:end], strict=True) if flag]
                    whole = [*tokens[start:end], labels[end - 1]]
                    found.append((tokenizer.decode(whole), tokenizer.decode(answer)))
        rows = rows_of(prepared, split)
        assert sorted(found) == sorted((row["input"] + row["output"], row["output"]) for row in rows)


@pytest.fixture(scope="module")
def conversations(tmp_path_factory, tokenizer_folder) -> Path:
    """A hundred conversations with tools and thinking, loss on every turn of the assistant."""
    pytest.importorskip("nemo.collections.llm")
    folder = tmp_path_factory.mktemp("conversations")
    (folder / "t.jsonl").write_text("".join(json.dumps(chat(seed)) + "\n" for seed in range(100)))
    options = PrepareOptions(tokenizer=str(tokenizer_folder), loss="all", pack=2 * SIZE, near_duplicates=1)
    prepare(folder / "t.jsonl", folder / "out", options)
    return folder / "out"


def test_every_turn_of_the_assistant_carries_loss_and_nothing_else(conversations, tokenizer, tokenizer_folder):
    module = data_module(conversations, tokenizer_folder, size=2 * SIZE)
    dataset = module._create_dataset(module.train_path, **module.dataset_kwargs)
    rows = rows_of(conversations, "training")
    assert len(dataset) == len(rows) > 100
    assert sum(len(steps_in(row)) > 1 for row in rows) > 30
    assert sum(row["output"].startswith(" to=functions.") for row in rows) > 10, "a blank that NeMo would strip"
    for index, row in enumerate(rows):
        batch = dataset.collate_fn([dataset[index]])
        tokens, labels, mask = (batch[name][0].tolist() for name in ("tokens", "labels", "loss_mask"))
        parts = [[tokenizer.encode(part, add_special_tokens=False) for part in step] for step in steps_in(row)]
        whole = [token for step in parts for part in step for token in part]
        assert tokens[: len(whole) - 1] == whole[:-1]
        assert labels[: len(whole) - 1] == whole[1:]
        expected = [is_answer for step in parts for part, is_answer in zip(step, (0, 1), strict=True) for _ in part]
        assert mask == [*expected[1:], *[0] * (len(mask) - len(whole) + 1)]
        assert tokenizer.decode(whole) == row["input"] + row["output"]


def test_packed_conversations_carry_the_same_loss(conversations, tokenizer, tokenizer_folder):
    from nemo.collections.llm.gpt.data.packed_sequence import PackedSequenceSpecs

    specs = PackedSequenceSpecs(**packed_sequence_arguments(conversations, 2 * SIZE))
    module = data_module(conversations, tokenizer_folder, size=2 * SIZE, packed_sequence_specs=specs)
    dataset = module._create_dataset(
        module.train_path_packed, pack_metadata_path=module.pack_metadata, **module.dataset_kwargs
    )
    found = []
    for index in range(len(dataset)):
        batch = dataset.collate_fn([dataset[index]])
        tokens, labels, mask = (batch[name][0].tolist() for name in ("tokens", "labels", "loss_mask"))
        for start, end in pairwise(batch["cu_seqlens_unpadded"][0].tolist()):
            if end > start and any(mask[start:end]):
                found.append(([*tokens[start:end], labels[end - 1]], [False, *map(bool, mask[start:end])]))
    rows = rows_of(conversations, "training")
    expected = [tokens_and_loss(row, lambda text: tokenizer.encode(text, add_special_tokens=False)) for row in rows]
    assert sorted(found) == sorted((tokens, learnt) for tokens, learnt in expected)


def test_a_conversation_that_is_too_long_is_not_cut_in_silence(conversations, tokenizer_folder):
    module = data_module(conversations, tokenizer_folder, size=64)
    dataset = module._create_dataset(module.train_path, **module.dataset_kwargs)
    several = next(n for n, row in enumerate(rows_of(conversations, "training")) if len(steps_in(row)) > 1)
    with pytest.raises(DataError, match=r"more than data\.seq_length: prepare it with --tokenizer and --max-length 64"):
        dataset[several]


@pytest.fixture
def alone():
    from modeling import inference

    inference.initialize()
    yield
    inference.shutdown()


@pytest.mark.parametrize("packed", [False, True], ids=["tickets", "packed"])
def test_a_resumed_training_reads_on_where_it_stopped(prepared, tokenizer_folder, alone, packed):
    """Ten steps of 64 rows, and those of a new process after the first six: the order is that of the whole training."""
    from nemo.collections.llm.gpt.data.packed_sequence import PackedSequenceSpecs
    from nemo.lightning.data import add_megatron_sampler

    specs = PackedSequenceSpecs(**packed_sequence_arguments(prepared, SIZE)) if packed else None
    steps, batch = 10, 64

    def batches(done: int):
        arguments = {"global_batch_size": batch, "num_workers": 0, "pin_memory": False, "packed_sequence_specs": specs}
        module = data_module(prepared, tokenizer_folder, **arguments)
        module.trainer = SimpleNamespace(max_steps=steps, global_step=done)
        module.setup("fit")
        loader = add_megatron_sampler(
            module.train_dataloader(),
            micro_batch_size=1,
            global_batch_size=batch,
            consumed_samples=done * batch,
            dataloader_type="batch",
        )
        return [step["tokens"] for step in loader]

    whole, rest = batches(0), batches(6)
    assert len(whole) == steps
    assert len(rest) == steps - 6
    assert all(torch.equal(a, b) for a, b in zip(whole[6:], rest, strict=True))
    assert len({tuple(row.tolist()) for step in whole[:2] for row in step}) > batch, "other rows in each step"
