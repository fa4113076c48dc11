"""The words of a text by which copies of a ticket are known, in any script."""

from __future__ import annotations

import re
import unicodedata

_JOINERS = "\u200c\u200d"


def _is_kept(character: str) -> bool:
    """Whether a character that is no letter or digit is part of a word: vowel signs and other marks, joiners, emoji.

    Marks that choose between two forms of one character are not.
    """
    if "\ufe00" <= character <= "\ufe0f":
        return False
    category = unicodedata.category(character)
    return (
        category[0] == "M"
        or character in _JOINERS
        or (category == "So" and character >= "\u2600")
        or "\U0001f3fb" <= character <= "\U0001f3ff"  # skin tones, which are modifiers
    )


_KEPT = frozenset(filter(_is_kept, map(chr, range(0x300, 0x20000))))
_NOT_WORDS = re.compile(r"[\W_]+")


def normalized(text: str) -> str:
    """The words of a text without case and punctuation, which copies of a ticket have in common."""
    words = text.casefold()
    if words.isascii() or _KEPT.isdisjoint(words):
        return _NOT_WORDS.sub(" ", words).strip() or text
    return " ".join(_NOT_WORDS.sub(_kept_of, words).split()) or text


def _kept_of(gap: re.Match[str]) -> str:
    """What `\\W` takes for no part of a word and is one; blanks for the rest."""
    return "".join(character if character in _KEPT else " " for character in gap[0])
