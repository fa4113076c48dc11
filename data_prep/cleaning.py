"""Rules that make a ticket's text clean, in the order in which they work."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from common.errors import ConfigurationError
from data_prep.markup import html_text
from data_prep.written_breaks import without_written_breaks

# Cc but tab and line feed; zero-width space, marks of direction, word joiner, byte order mark, soft hyphen;
# surrogates and noncharacters. Joiners (U+200C, U+200D) stay: scripts and emoji need them.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_BLANKS = re.compile(r"[^\S\n ][^\S\n]*| [^\S\n]+")  # but not the single blank, which is most of them
_EMPTY_LINES = re.compile(r"\n{3,}")
MOST_MARKS = 30  # on one letter: Unicode's stream-safe text format (UAX 15) has no more
_COMBINING = frozenset(mark for mark in map(chr, range(0x300, 0x20000)) if unicodedata.combining(mark))
_MARKS = re.compile(f"([{''.join(sorted(_COMBINING))}]{{{MOST_MARKS + 1},}})")


def _control(text: str) -> str:
    if "\r" in text or "\u2028" in text or "\u2029" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    return _CONTROL.sub("", text)


def _whitespace(text: str) -> str:
    text = _BLANKS.sub(" ", text).replace(" \n", "\n").replace("\n ", "\n")
    return (_EMPTY_LINES.sub("\n\n", text) if "\n\n\n" in text else text).strip()


def _nfc(text: str) -> str:
    if text.isascii():
        return text
    if _COMBINING.isdisjoint(text):
        return unicodedata.normalize("NFC", text)
    # Python sorts the marks of one letter by insertion: of thousands in a row each stays where it is
    parts = _MARKS.split(text)
    parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
    return "".join(parts)


WRITTEN_BREAKS = "written-breaks"
RULES: dict[str, Callable[[str], str]] = {
    "html": html_text,
    WRITTEN_BREAKS: without_written_breaks,
    "control-characters": _control,
    "nfc": _nfc,
    "whitespace": _whitespace,
}
# Rules on a whole row, which data_prep.intake applies: they can be skipped by these names as well.
LABEL_SPELLING, LANGUAGE_CODES, EMPTY_ROWS = "label-spelling", "language-codes", "empty-rows"
CHAT_RULES = ("control-characters", "nfc")  # code and markup in a conversation are meant
DESCRIPTIONS = {
    "html": "HTML tags and entities",
    WRITTEN_BREAKS: "literal \\n as a line break",
    "control-characters": "control and invisible characters",
    "nfc": "Unicode NFC",
    "whitespace": "runs of blanks and empty lines",
    LABEL_SPELLING: "spellings of one label",
    LANGUAGE_CODES: "language codes (de for DE, de-AT)",
    EMPTY_ROWS: "rows without text, dropped",
}


@dataclass
class Cleaner:
    """Applies the rules but `skip` and counts the tickets that each of them changed.

    Raises:
        ConfigurationError: `skip` names a rule that there is not.
    """

    skip: Sequence[str] = ()
    changed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for name in self.skip:
            if name not in DESCRIPTIONS:
                raise ConfigurationError(
                    f"there is no cleaning rule {name!r} to skip: there are {', '.join(DESCRIPTIONS)}."
                )
        self._rules = [(name, rule) for name, rule in RULES.items() if name not in self.skip]
        self.changed.update({name: 0 for name, _ in self._rules})

    def clean(self, *texts: str) -> list[str]:
        """The texts of one ticket, cleaned."""
        return self._apply(self._rules, texts)

    def clean_chat(self, *texts: str) -> list[str]:
        """The texts of one conversation: only what no writer means is taken away."""
        return self._apply([(name, rule) for name, rule in self._rules if name in CHAT_RULES], texts)

    def _apply(self, rules: Sequence[tuple[str, Callable[[str], str]]], texts: Sequence[str]) -> list[str]:
        cleaned = list(texts)
        for name, rule in rules:
            after = [rule(text) for text in cleaned]
            if after != cleaned:
                self.changed[name] += 1
                cleaned = after
        return cleaned


def cleaned_name(text: str) -> str:
    """A label, a language or an id, without line breaks, control characters and outer blanks."""
    return _BLANKS.sub(" ", _CONTROL.sub("", unicodedata.normalize("NFC", text)).replace("\n", " ")).strip()
