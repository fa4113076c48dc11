"""A rehearsal's tokenizer keeps the words of the run's own tickets whole, whatever their source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.harmony import CHAT_TEMPLATE, SPECIAL_TOKENS
from data_prep.options import PrepareOptions
from data_prep.preparation import prepare
from data_prep.tokenizer_corpus import sample_texts, tokenizer_texts
from data_prep.toy_tokenizer import train_tokenizer

WORDS = "Rechnungsnummer", "Verbindungsabbruch", "Zahlungsaufforderung", "Drucker"
OPTIONS = PrepareOptions()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [
        f'"{WORDS[i % 4]} Nr {i}","Die {WORDS[i % 4]} <b>fehlt</b> seit {i} Tagen",Abteilung {i % 2}' for i in range(60)
    ]
    file = tmp_path / "tickets.csv"
    file.write_text("subject,body,queue\n" + "\n".join(rows) + "\n")
    return file


def tokenizer_of(texts: list[str], folder: Path) -> Any:
    from transformers import AutoTokenizer

    train_tokenizer(texts, folder, vocab_size=640, chat_template=CHAT_TEMPLATE, special_tokens=SPECIAL_TOKENS)
    return AutoTokenizer.from_pretrained(folder)


def test_words_of_a_table_are_tokens_and_so_are_those_of_the_prompt(table: Path, tmp_path: Path) -> None:
    texts = tokenizer_texts(str(table), OPTIONS)
    assert f"{WORDS[1]} Nr 1\nDie {WORDS[1]} fehlt seit 1 Tagen" in texts, "cleaned, as prepare cleans"
    assert not [text for text in texts if "<|" in text]
    tokenizer = tokenizer_of(texts, tmp_path / "own")
    others = tokenizer_of(sample_texts()[:300], tmp_path / "sample")
    assert [text for text in texts if "Route the ticket. Answer with its queue" in text]
    for word in ("Rechnungsnummer", " Verbindungsabbruch", "Abteilung"):
        assert len(tokenizer.tokenize(word)) == 1, word
    assert len(others.tokenize("Rechnungsnummer Verbindungsabbruch")) > 8


def test_few_tickets_fill_a_smaller_vocabulary(table: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    few.write_text("body,queue\nHallo,A\nWelt,B\n")
    tokenizer = tokenizer_of(tokenizer_texts(str(few), OPTIONS), tmp_path / "tokenizer")
    assert len(tokenizer) < 640
    assert tokenizer.convert_tokens_to_ids("<|return|>") < len(tokenizer)
    assert tokenizer.decode(tokenizer.encode("Grüße, 你好")) == "Grüße, 你好"


def test_conversations_and_prepared_folders(table: Path, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    said = [{"role": "user", "content": "Wo ist mein Paket?"}, {"role": "assistant", "content": "Unterwegs."}]
    chats.write_text(json.dumps({"messages": said}) + "\n")
    texts = tokenizer_texts(str(chats), OPTIONS)
    assert texts[0] == "Wo ist mein Paket?\nUnterwegs."
    assert [text for text in texts if text.startswith("You are ChatGPT")], "the frame of every prompt"
    prepare(table, tmp_path / "data", OPTIONS)
    texts = tokenizer_texts(str(tmp_path / "data"), OPTIONS)
    assert f"{WORDS[1]} Nr 1\nDie {WORDS[1]} fehlt seit 1 Tagen" in texts
    assert "Abteilung 1" in texts
    assert not [text for text in texts if "<|" in text]


def test_the_sample_has_its_own() -> None:
    assert tokenizer_texts("sample", OPTIONS) is sample_texts()
