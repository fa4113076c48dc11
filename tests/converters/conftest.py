"""Toy checkpoints in Hugging Face form, and the tools to look into checkpoints byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from converters.toy_checkpoint import write_toy_checkpoint
from tests.shapes import lopsided

SIZES = lopsided(
    {
        "num_hidden_layers": 3,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "head_dim": 16,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "sliding_window": 8,
        "vocab_size": 128,
    }
)


def write_tokenizer(folder: Path, vocab_size: int = 128) -> None:
    """A tokenizer whose words are t0, t1, …"""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="t0", pad_token="t1", eos_token="t2")
    fast.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    fast.save_pretrained(folder)


def write_model(
    folder: Path,
    sizes: dict[str, Any] = SIZES,
    *,
    weights: Literal["mxfp4", "bf16"] = "mxfp4",
    seed: int = 0,
    shards: int = 1,
) -> Path:
    """A toy model with its tokenizer."""
    write_toy_checkpoint(folder, config=sizes, std=0.2, weights=weights, seed=seed, shards=shards)
    write_tokenizer(folder, sizes["vocab_size"])
    return folder


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of all safetensors of a folder."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Same names, dtypes, shapes and bits."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8))
        for name in a
    )


@pytest.fixture(scope="session")
def mxfp4_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("toys") / "mxfp4", weights="mxfp4", shards=3)


@pytest.fixture(scope="session")
def bf16_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same values as `mxfp4_toy`."""
    return write_model(tmp_path_factory.mktemp("toys") / "bf16", weights="bf16")


@pytest.fixture(scope="session")
def imported(mxfp4_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from converters.import_hf import import_checkpoint

    return import_checkpoint(mxfp4_toy, tmp_path_factory.mktemp("imported") / "nemo")


@pytest.fixture
def model() -> Callable[..., Path]:
    return write_model


@pytest.fixture(scope="session")
def tensors() -> Callable[[Path], dict[str, torch.Tensor]]:
    return read_tensors


@pytest.fixture(scope="session")
def same() -> Callable[..., bool]:
    return identical


@pytest.fixture(scope="session")
def sizes() -> dict[str, Any]:
    return SIZES
