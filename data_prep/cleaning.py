"""Rules that make a ticket's text clean, in the order in which they work."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from common.errors import ConfigurationError

# Tags that mark up text; names that are placeholders in tickets (<name>, <title>, <address>) are not among them.
_TAGS = (
    "a|abbr|b|big|blockquote|body|br|center|code|col|colgroup|dd|div|dl|dt|em|font|footer|form|h[1-6]|head|header|hr|html|"
    "i|img|li|meta|nav|ol|p|pre|s|script|section|small|span|strike|strong|style|sub|sup|table|tbody|td|tfoot|th|thead|tr|"
    "tt|u|ul"
)
_HIDDEN = re.compile(r"<(style|script)\b[^>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->|<!doctype[^>]*>", re.IGNORECASE | re.DOTALL)
_BREAK = re.compile(r"<(?:br|hr)\s*/?>|</?(?:p|div|li|tr|h[1-6]|blockquote)\b[^>]*>", re.IGNORECASE)
_TAG = re.compile(rf"</?(?:{_TAGS})\b(?:\s[^<>]*)?/?>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.IGNORECASE)
# A Windows path keeps its backslashes; everything else that reads \n is a line break that an export wrote out.
_WRITTEN_BREAK = re.compile(r"(\b[A-Za-z]:\\[\w.\\-]+|\\\\\w[\w.\\-]+)|\\r\\n|\\[rn]|(\\t)")
# Cc but tab and line feed; zero-width space, marks of direction, word joiner, byte order mark, soft hyphen;
# surrogates and noncharacters. Joiners (U+200C, U+200D) stay: scripts and emoji need them.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_BLANKS = re.compile(r"[^\S\n ][^\S\n]*| [^\S\n]+")  # but not the single blank, which is most of them
_EMPTY_LINES = re.compile(r"\n{3,}")


def _html(text: str) -> str:
    if "<" in text:
        text = _COMMENT.sub(" ", _HIDDEN.sub(" ", text))
        text = _TAG.sub("", _BREAK.sub("\n", text))
    return _ENTITY.sub(lambda match: html.unescape(match[0]), text) if "&" in text else text


def _written_breaks(text: str) -> str:
    if "\\" not in text:
        return text
    return _WRITTEN_BREAK.sub(lambda match: match[1] or (" " if match[2] else "\n"), text)


def _control(text: str) -> str:
    if "\r" in text or "\u2028" in text or "\u2029" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    return _CONTROL.sub("", text)


def _whitespace(text: str) -> str:
    text = _BLANKS.sub(" ", text).replace(" \n", "\n").replace("\n ", "\n")
    return (_EMPTY_LINES.sub("\n\n", text) if "\n\n\n" in text else text).strip()


RULES: dict[str, Callable[[str], str]] = {
    "html": _html,
    "written-breaks": _written_breaks,
    "control-characters": _control,
    "nfc": lambda text: unicodedata.normalize("NFC", text),
    "whitespace": _whitespace,
}
# Rules on a whole row, which data_prep.intake applies: they can be skipped by these names as well.
LABEL_SPELLING, LANGUAGE_CODES, EMPTY_ROWS = "label-spelling", "language-codes", "empty-rows"
CHAT_RULES = ("control-characters", "nfc")  # code and markup in a conversation are meant
DESCRIPTIONS = {
    "html": "HTML tags and entities",
    "written-breaks": "literal \\n as a line break",
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
