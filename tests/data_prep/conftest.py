"""A small tokenizer with gpt-oss's control tokens, trained on the sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep.harmony import CHAT_TEMPLATE, SPECIAL_TOKENS
from data_prep.tokenizer_corpus import sample_texts
from data_prep.toy_tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = sample_texts()[:300]
    train_tokenizer(texts, folder, vocab_size=800, chat_template=CHAT_TEMPLATE, special_tokens=SPECIAL_TOKENS)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)
