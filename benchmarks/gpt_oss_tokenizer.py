"""gpt-oss's own tokenizer as a transformers folder, from its vocabulary: `o200k_base.tiktoken` of openai/tiktoken."""

from __future__ import annotations

import base64
from itertools import pairwise
from pathlib import Path

from data_prep.harmony import CHAT_TEMPLATE
from data_prep.toy_tokenizer import byte_level, save

_LETTERS = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLIT = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS[1]}*{_LETTERS[0]}+{_ENDING}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS[1]}+{_LETTERS[0]}*{_ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
"""How the encoding o200k splits text before it merges bytes."""
FIRST_SPECIAL = 199_998
SPECIAL = {
    199_998: "<|startoftext|>",
    199_999: "<|endoftext|>",
    200_002: "<|return|>",
    200_003: "<|constrain|>",
    200_005: "<|channel|>",
    200_006: "<|start|>",
    200_007: "<|end|>",
    200_008: "<|message|>",
    200_012: "<|call|>",
    200_018: "<|endofprompt|>",
}
"""Harmony's control tokens by id (openai/harmony, docs/format.md); the ids between them are reserved."""


def write_gpt_oss_tokenizer(vocabulary: Path, folder: Path) -> None:
    """Write tokenizer.json and what belongs to it.

    Raises:
        ValueError: `vocabulary` is another encoding.
    """
    from tokenizers import AddedToken, models

    ranks = _ranks(vocabulary)
    if len(ranks) != FIRST_SPECIAL:
        raise ValueError(f"{vocabulary} is not o200k_base, which has {FIRST_SPECIAL:,} tokens: it has {len(ranks):,}.")
    visible = _visible_bytes()

    def text(token: bytes) -> str:
        return "".join(visible[byte] for byte in token)

    merges = [(text(left), text(right)) for left, right in (_last_merge(token, ranks) for token in ranks if token[1:])]
    vocabulary_of_text = {text(token): rank for token, rank in ranks.items()}
    tokenizer = byte_level(models.BPE(vocabulary_of_text, merges, ignore_merges=True), SPLIT)
    special = [SPECIAL.get(number, f"<|reserved_{number}|>") for number in range(FIRST_SPECIAL, max(SPECIAL) + 1)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    save(tokenizer, folder, CHAT_TEMPLATE)


def _ranks(vocabulary: Path) -> dict[bytes, int]:
    """Tokens by rank: each line of the file is base64, a blank, the rank."""
    lines = (line.split() for line in vocabulary.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _visible_bytes() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself where it shows, else one past 255."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that byte-pair encoding merges last to make `token`: always the pair of the lowest rank first."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, FIRST_SPECIAL) for left, right in pairwise(parts)]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]
