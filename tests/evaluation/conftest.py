"""A tiny random gpt-oss in transformers form, and a prepared folder with labels that share prefixes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_prep.harmony import CHAT_TEMPLATE, SPECIAL_TOKENS
from data_prep.toy_tokenizer import train_tokenizer
from tests.shapes import lopsided

# "Sales" is a prefix of "Sales Support", which shares its end with "IT Support" and its start with "Sales Return".
LABELS = ["IT", "IT Support", "Sales", "Sales Return", "Sales Support", "Human Resources"]
WORDS = {
    "IT": "laptop screen",
    "IT Support": "password login vpn",
    "Sales": "quote price",
    "Sales Return": "refund parcel broken",
    "Sales Support": "discount offer contract",
    "Human Resources": "payslip vacation salary",
}
BEFORE = "<|start|>user<|message|>"
AFTER = "<|end|><|start|>assistant<|channel|>final<|message|>"
END = "<|return|>"


def ticket_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Rows as data_prep writes them, every label about as often."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = LABELS[number % len(LABELS)]
        words = " ".join(draw.choices(WORDS[label].split(), k=draw.randint(2, 9)))
        text = f"Hello, {words} please"
        row = {"input": BEFORE + text + AFTER, "output": label + END, "id": f"{seed}-{number}", "label": label}
        rows.append(row | {"language": ("en", "de")[number // 6 % 2], "ticket": text})
    return rows


def write_prepared(folder: Path, training: int = 60, validation: int = 6, test: int = 18) -> Path:
    """A folder as `nemo-run prepare` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate({"training": training, "validation": validation, "test": test}.items()):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in ticket_rows(count, seed)]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    labels = [{"label": label, "completion": label + END} for label in LABELS]
    prompt = {"before": BEFORE, "after": AFTER, "end": END}
    facts = {"column": "queue", "format": "harmony", "skip": [], "prompt": prompt, "labels": labels}
    (folder / "labels.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and much slower where other processes want the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("prepared") / "data")


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that is not indifferent: its logits have a standard deviation of about 2."""
    from transformers import GptOssConfig, GptOssForCausalLM

    folder = tmp_path_factory.mktemp("hf") / "model"
    texts = [row["ticket"] + " " + row["label"] for row in ticket_rows(60, 0)]
    train_tokenizer(texts, folder, vocab_size=300, chat_template=CHAT_TEMPLATE, special_tokens=SPECIAL_TOKENS)
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=3,
        num_local_experts=4,
        num_experts_per_tok=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=16,
        initializer_range=0.3,
        eos_token_id=293,
        pad_token_id=292,
    )
    lopsided(config.to_dict())
    GptOssForCausalLM(config).save_pretrained(folder)
    return folder
