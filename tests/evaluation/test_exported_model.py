"""What transformers makes of a folder, and how it differs from kept logits."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import CheckpointError
from converters.toy_checkpoint import write_toy_checkpoint
from data_prep.harmony import CHAT_TEMPLATE, SPECIAL_TOKENS
from data_prep.toy_tokenizer import train_tokenizer
from evaluation import transformers_layers
from evaluation.parity import parity_of, save_logits
from evaluation.transformers_model import load
from tests.shapes import lopsided

SIZES = lopsided(
    {
        "vocab_size": 280,
        "hidden_size": 96,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 8,
    }
)
SHARD = "model-00002-of-00002.safetensors"
POSITIONS = torch.arange(21).expand(2, -1)
TOKENS = torch.randint(0, 280, (2, 21), generator=torch.Generator().manual_seed(0))


def write_model(folder: Path, weights: Literal["mxfp4", "bf16"]) -> Path:
    write_toy_checkpoint(folder, config=SIZES, weights=weights, std=0.3, shards=2)
    texts = ["the printer prints nothing", "my invoice is wrong"]
    train_tokenizer(texts, folder, vocab_size=270, chat_template=CHAT_TEMPLATE, special_tokens=SPECIAL_TOKENS)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("plain") / "model", "bf16")


def test_mxfp4_and_bf16_of_the_same_values_give_the_same_logits(plain: Path, tmp_path: Path) -> None:
    logits, tokenizer = load(plain)
    expected = logits(TOKENS)
    assert (expected.shape, expected.dtype) == ((2, 21, 280), torch.float32)
    assert expected.std() > 0.5
    torch.testing.assert_close(load(write_model(tmp_path / "mxfp4", "mxfp4"))[0](TOKENS), expected)
    text = "the invoice<|return|>"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_padding_on_the_right_changes_nothing_before_it(plain: Path) -> None:
    logits, _ = load(plain)
    padded = torch.cat([TOKENS, torch.zeros(2, 5, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(logits(padded)[:, :21], logits(TOKENS), atol=2e-4, rtol=0)


def test_parity_is_the_difference_put_in(plain: Path, tmp_path: Path) -> None:
    kept = load(plain)[0](TOKENS)
    save_logits(tmp_path / "same.safetensors", TOKENS, POSITIONS, kept)
    same = parity_of(plain, tmp_path / "same.safetensors")
    assert same.largest < 1e-5
    assert (same.positions, same.likeliest) == (42, 42)
    kept[0, 3, 5] += 0.1
    kept[1, 20, 279] -= 0.25
    save_logits(tmp_path / "changed.safetensors", TOKENS, POSITIONS, kept)
    assert parity_of(plain, tmp_path / "changed.safetensors").largest == pytest.approx(0.25, abs=1e-5)
    kept[1, 7, kept[1, 7].argmin()] = kept[1, 7].max() + 0.01
    save_logits(tmp_path / "changed.safetensors", TOKENS, POSITIONS, kept)
    assert parity_of(plain, tmp_path / "changed.safetensors").likeliest == 41
    kept[0, 0, 0] = math.nan
    save_logits(tmp_path / "nan.safetensors", TOKENS, POSITIONS, kept)
    assert parity_of(plain, tmp_path / "nan.safetensors").largest == math.inf


def test_kept_logits_that_cannot_be_compared(plain: Path, tmp_path: Path) -> None:
    file = tmp_path / "logits.safetensors"
    with pytest.raises(CheckpointError, match="is missing: run the evaluate stage"):
        parity_of(plain, file)
    file.write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="is damaged"):
        parity_of(plain, file)
    save_logits(file, TOKENS, POSITIONS, torch.zeros(2, 21, 288))
    with pytest.raises(CheckpointError, match=r"has a vocabulary of 280, .* of 288"):
        parity_of(plain, file)


@pytest.mark.parametrize("weights", ["bf16", "mxfp4"])
def test_layer_by_layer_gives_what_the_whole_model_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Literal["mxfp4", "bf16"]
) -> None:
    """Prompts of four windows, in blocks of 5 queries, at some positions."""
    folder = write_model(tmp_path / "model", weights)
    tokens = torch.randint(0, 280, (2, 33), generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([[0, 7, 32], [8, 31, 32]])
    monkeypatch.setattr(transformers_layers, "SCORES", 2 * 6 * 33 * 5)
    by_layer = transformers_layers.logits(folder, tokens, positions)
    assert by_layer.shape == (2, 3, 280)
    torch.testing.assert_close(by_layer, load(folder)[0](tokens, positions), atol=2e-5, rtol=0)


def test_layer_by_layer_refuses_weights_too_few_or_too_many(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "model")
    shard = load_file(tmp_path / "model" / SHARD)
    save_file(shard | {"model.layers.2.self_attn.extra": torch.zeros(1)}, tmp_path / "model" / SHARD)
    with pytest.raises(CheckpointError, match=r"1 weights that its config.json does not know, as .*extra"):
        transformers_layers.logits(tmp_path / "model", TOKENS, POSITIONS)
    save_file({name: shard[name] for name in sorted(shard)[1:]}, tmp_path / "model" / SHARD)
    with pytest.raises(CheckpointError, match=r"cannot load .*export it again"):
        transformers_layers.logits(tmp_path / "model", TOKENS, POSITIONS)


def truncate(folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[: len(content) // 2])


def lose_a_weight(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    name = next(name for name, file in index["weight_map"].items() if file == SHARD and name.endswith("router.weight"))
    del index["weight_map"][name]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    tensors = load_file(folder / SHARD)
    del tensors[name]
    save_file(tensors, folder / SHARD, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "transformers cannot load"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "nonsense"}'), "nonsense"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json cannot be read"),
        (lambda folder: (folder / SHARD).unlink(), "transformers cannot load"),
        (truncate, "transformers cannot load"),
        (lose_a_weight, r"has 1 weights too few and 0 too many .*router\.weight"),
    ],
)
def test_says_what_is_wrong_with_the_folder(
    plain: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(plain, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as raised:
        load(folder)
    assert "\n" not in str(raised.value)
