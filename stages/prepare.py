"""The stage `prepare`: tickets → cleaned, split and rendered JSONL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common.errors import DataError
from data_prep.harmony import load_tokenizer
from data_prep.nemo_dataset import packed_sequence_arguments
from data_prep.preparation import prepare
from data_prep.renamed import write_renamed
from pipeline.run_folder import RunFolder
from pipeline.stage import Details


def prepare_tickets(run: RunFolder) -> Details:
    """Prepare the recipe's tickets for its sequence length, in the prompts of its model's tokenizer."""
    data = run.recipe.data
    options = replace(
        data.prepare,
        tokenizer=str(run.hf),
        max_length=data.prepare.max_length or data.seq_length,
        loss=data.loss or data.prepare.loss,
        pack=data.seq_length if data.packed else data.prepare.pack,
    )
    report = prepare(data.source, run.data, options)
    learnt = report.options.get("loss", "last")
    if data.loss and learnt != data.loss:
        raise DataError(f"{data.source} was prepared with loss on {learnt}: prepare it again with --loss {data.loss}.")
    if run.recipe.pretraining:
        write_renamed(run.data, run.renamed, load_tokenizer(str(run.hf)), data.seq_length)
    _check_lengths(run, max((int(split.get("longest", 0)) for split in report.lengths.values()), default=0))
    return Details(report.summary())


def _check_lengths(run: RunFolder, longest: int) -> None:
    """Refuse a folder that was prepared before, for shorter sequences: NeMo would cut its prompts without a word."""
    data, size = run.recipe.data, run.recipe.data.seq_length
    if longest > size:
        raise DataError(
            f"{data.source} holds tickets of {longest} tokens: set data.seq_length={longest}, "
            f"or prepare it with --max-length {size}."
        )
    packed = Path(packed_sequence_arguments(run.data, size)["packed_train_data_path"])
    if data.packed and not packed.is_file():
        raise DataError(
            f"{data.source} holds no sequences packed to {size} tokens: prepare it with --pack {size}, "
            "or set data.packed=false."
        )
