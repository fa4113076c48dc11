"""Rows of data_prep as NeMo's fine-tuning dataset gives them to the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from nemo.collections.llm.gpt.data.core import GPTSFTDataset
from nemo.collections.llm.gpt.data.fine_tuning import FineTuningDataModule

from common.errors import DataError
from data_prep.row_format import WITHOUT_LOSS, tokens_and_loss


class TurnsDataset(GPTSFTDataset):
    """NeMo's dataset, and the rows that it would read otherwise than they are (data_prep.row_format).

    nemo 2.7.3, `GPTSFTDataset._process_example`: it strips the blank with which harmony's header of a tool call begins,
    and knows one place from which on a row carries loss.
    """

    def _process_example(self, example: Mapping[str, Any]) -> dict[str, Any]:
        if WITHOUT_LOSS not in example:
            return super()._process_example(example)
        encode: Any = self.tokenizer.text_to_ids  # declared without what it returns
        tokens, learnt = tokens_and_loss(example, encode)
        if len(tokens) > self.max_seq_length:
            raise DataError(
                f"{self.file_path} holds a conversation of {len(tokens):,} tokens, more than data.seq_length: prepare "
                f"it with --tokenizer and --max-length {self.max_seq_length}."
            )
        start = learnt.index(True)
        return {
            "input_ids": tokens,
            "loss_mask": [float(flag) for flag in learnt],
            "answer_start_idx": start,
            "context_ids": tokens[:start],
            "context_length": start,
            "answer_ids": tokens[start:],
            "metadata": {name: value for name, value in example.items() if name not in self.prompt_template_keys},
            "token_count": len(tokens),
        }

    def _build_loss_mask(self, processed_example: Mapping[str, Any]) -> list[float]:
        mask = processed_example.get("loss_mask")
        return super()._build_loss_mask(processed_example) if mask is None else mask


class TicketDataModule(FineTuningDataModule):
    """NeMo's data module, whose unpacked rows are a `TurnsDataset`."""

    @lru_cache  # noqa: B019  # as NeMo's: samples are drawn once
    def _create_dataset(
        self, path: str | Path, pack_metadata_path: Any = None, is_test: bool = False, **kwargs: Any
    ) -> GPTSFTDataset:
        if self.packed_sequence_size > 0:
            return super()._create_dataset(path, pack_metadata_path=pack_metadata_path, is_test=is_test, **kwargs)
        return TurnsDataset(
            file_path=str(path),
            tokenizer=cast(Any, self.tokenizer),  # train.py gives one
            max_seq_length=self.seq_length,
            memmap_workers=self.memmap_workers,
            seed=self.seed,
            is_test=is_test,
            label_key="output",
            **kwargs,
        )
