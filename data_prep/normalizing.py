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


_KEPT = "".join(filter(_is_kept, map(chr, range(0x300, 0x20000))))
_KEPT_ONE, _DROPPED = re.compile(f"[{_KEPT}]"), re.compile(f"[^{_KEPT}]+")
_NOT_WORDS = re.compile(r"[\W_]+")


def normalized(text: str) -> str:
    """The words of a text without case and punctuation, which copies of a ticket have in common."""
    words = text.casefold()
    if words.isascii() or not _KEPT_ONE.search(words):
        return _NOT_WORDS.sub(" ", words).strip() or text
    # what \W takes for no part of a word is looked at again: one set of both takes a hundred times as long
    return _NOT_WORDS.sub(lambda gap: _DROPPED.sub(" ", gap[0]), words).strip() or text
