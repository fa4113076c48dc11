"""The text of an HTML body, by Python's own tokenizer; whatever may be text in angle brackets stays.

Only what is surely markup reaches the parser as markup: tags of HTML and of Microsoft Office whose attributes are
written as such. Everything else in angle brackets (`<name>`, `<user@host>`, `a <b and c> d`) reaches it escaped. So
the parser meets whole tags only, and its time is linear: html.parser of Python 3.11 looks for the end of an open tag,
comment or declaration from each of their beginnings anew.
"""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


_BREAKING = _set(
    "address article aside blockquote br center dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 "
    "header hr li main nav ol option p pre section table tr ul"
)
_CELLS = _set("td th")
_HIDDEN = _set("head style script xml")
"""Elements that nobody reads, where they are closed."""
_PLAIN = _set(
    "a abbr acronym b bdo big body caption cite code col colgroup del dfn em font frame frameset html i iframe img ins "
    "kbd map meta nobr noscript q s samp small span strike strong sub sup tbody textarea tfoot thead tt u var wbr"
)
_AMBIGUOUS = _set(
    "address area audio base button canvas caption cite code data details dialog embed input label legend link main "
    "map mark menu meter nav object option output param progress section select source summary template time title "
    "track var video"
)
"""Names that tickets also use for what a writer is to fill in: tags only with attributes, or where they are closed."""
_ALONE = _set("body br div head hr html img li p table tbody td th tr wbr")
"""Tags that need neither attributes nor an end."""
_STRUCTURE = _set("body br hr html")
_KNOWN = _BREAKING | _CELLS | _HIDDEN | _PLAIN | _AMBIGUOUS
_OFFICE = ("o:", "v:", "w:", "m:", "x:", "st1:", "u1:", "dt:")
_SWITCHES = _set(
    "allowfullscreen async autofocus border checked compact controls defer disabled download hidden ismap multiple "
    "nohref noresize noshade novalidate nowrap open readonly required reversed selected"
)
"""Attributes that stand without a value."""
_ATTRIBUTE = r"""\s++(?:[^\s"'<>/=]++(?:\s*+=\s*+(?:"[^"<]*+"|'[^'<]*+'|[^\s"'=<>`]++))?+)"""
_TAG = re.compile(
    rf"<(?P<end>/?)(?P<name>[a-z][a-z0-9]*+(?::[a-z]\w*+)?+)(?P<attributes>(?:{_ATTRIBUTE})*+)\s*+/?>"
    r"|<!doctype\s[^<>]*+>|<!\[(?:if|endif)[^<>]*+>|<\?xml[^<>]*+>|<",
    re.IGNORECASE,
)
_SWITCH = re.compile(r"""(?:^|\s)([^\s"'<>/=]++)(?=\s++[^\s=]|\s*+$)""")
_ENTITY = re.compile(r"&(?:amp;)*((?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});)", re.IGNORECASE)
"""An entity that ends as it must; escaped again by every program on its way, it is still the same."""


def html_text(text: str) -> str:
    """A body without tags and entities; one whose tags are all escaped was escaped as a whole."""
    if "<" in text and is_html(text):
        return _parsed(text)
    plain = decoded(text)
    return _parsed(plain) if "<" not in text and "<" in plain and is_html(plain) else plain


def decoded(text: str) -> str:
    """The text without entities."""
    return _ENTITY.sub(_character, text) if "&" in text else text


def is_html(text: str) -> bool:
    """Whether a text has a tag that is no placeholder: with attributes, with an end, or a line break."""
    ends: dict[str, int] = {}
    for match in reversed(list(_TAG.finditer(text))):
        if match["end"]:
            ends.setdefault(match["name"].lower(), match.start())
        elif _proves_html(match, ends):
            return True
    return False


def _proves_html(match: re.Match[str], ends: dict[str, int]) -> bool:
    if not match["name"]:
        return len(match[0]) > 1  # a declaration
    name = match["name"].lower()
    if name in _STRUCTURE or name.startswith(_OFFICE):
        return True
    is_closed = name in ends and name not in _AMBIGUOUS
    return (is_closed or "=" in match["attributes"]) and _is_tag(match, ends)


def _character(match: re.Match[str]) -> str:
    character = html.unescape(f"&{match[1]}")
    return character if character != f"&{match[1]}" else html.unescape(match[0])


def _parsed(text: str) -> str:
    text = _without_comments(text).replace("&", "&amp;")
    ends = {match["name"].lower(): match.start() for match in _TAG.finditer(text) if match["end"]}
    parser = _Text()
    parser.feed(_TAG.sub(lambda match: _protected(match, ends), text))
    parser.close()
    return decoded("".join(parser.parts))


def _protected(match: re.Match[str], ends: dict[str, int]) -> str:
    """A tag as it is, a declaration as nothing, and anything else in angle brackets as text.

    Args:
        ends: where each name is closed for the last time.
    """
    if not match["name"]:
        return "" if len(match[0]) > 1 else "&lt;"
    if not _is_tag(match, ends):
        return "&lt;" + match[0][1:]
    name = match["name"].lower()
    return "" if name == "head" and ends.get(name, -1) < match.start() else match[0]  # it may stay open


def _is_tag(match: re.Match[str], ends: dict[str, int]) -> bool:
    name, attributes = match["name"].lower(), match["attributes"]
    if match["end"] or name.startswith(_OFFICE):
        return name in _KNOWN or name.startswith(_OFFICE)
    if name not in _KNOWN or any(switch.lower() not in _SWITCHES for switch in _SWITCH.findall(attributes)):
        return False
    is_closed = ends.get(name, -1) > match.start()
    if name in _HIDDEN and name != "head":
        return is_closed
    return "=" in attributes or is_closed or (name in _ALONE and name not in _AMBIGUOUS)


def _without_comments(text: str) -> str:
    kept, place = [], 0
    while (start := text.find("<!--", place)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        kept.append(text[place:start])
        place = end + 3
    return "".join((*kept, text[place:]))


class _Text(HTMLParser):
    """Gathers the text of the elements that are read."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._hidden:
            return
        if tag in _HIDDEN:
            self._hidden = tag
        self._break(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self._hidden:
            self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == self._hidden:
            self._hidden = ""
        if not self._hidden and tag != "br":
            self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)

    def _break(self, tag: str) -> None:
        if tag in _BREAKING:
            self.parts.append("\n")
        elif tag in _CELLS:
            self.parts.append(" ")
