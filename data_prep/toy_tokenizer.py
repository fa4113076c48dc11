"""A small byte-level BPE tokenizer with the interface of gpt-oss's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.errors import ConfigurationError


def train_tokenizer(
    texts: Iterable[str], folder: Path, *, vocab_size: int, chat_template: str, special_tokens: list[str]
) -> None:
    """Train on `texts` and write a transformers tokenizer folder; the same texts give the same tokenizer.

    Args:
        vocab_size: entries at most, the 256 bytes and the special tokens (the last ids) included; few texts fill fewer.
        special_tokens: control tokens; `<|return|>` ends an answer and `<|endoftext|>` pads.
    Raises:
        ConfigurationError: the vocabulary is too small.
    """
    from tokenizers import models, pre_tokenizers, trainers

    plain = vocab_size - len(special_tokens)
    if plain < 256:
        raise ConfigurationError(
            f"a vocabulary of {vocab_size} cannot hold 256 bytes and {len(special_tokens)} tokens: raise vocab_size."
        )
    split = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = byte_level(models.BPE(), split)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=plain, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(special_tokens)
    save(tokenizer, folder, chat_template)


def byte_level(model: Any, split: str) -> Any:
    """A tokenizer over bytes by a model of the package tokenizers; `split` is the pattern that takes text apart."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save(tokenizer: Any, folder: Path, chat_template: str) -> None:
    """Write a tokenizer with harmony's control tokens as a transformers folder."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|return|>",
        pad_token="<|endoftext|>",
        bos_token="<|startoftext|>",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        chat_template=chat_template,
    )
    fast.save_pretrained(folder)
