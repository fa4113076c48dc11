r"""Line breaks that an export wrote out as a backslash and an n, told from backslashes that are meant.

`CORP\rsmith`, `C:\new\table` and `printf("a\n")` have the same characters. A file whose texts have real line breaks,
and hardly one with written breaks between its sentences, wrote none out: there every backslash is meant, as it is in a
text with a real break. Elsewhere a path keeps its backslashes, and so does a word with one in it: a small letter behind
a written break begins a line only after a comma, a sentence or a blank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SEGMENTS = r"[^\s\"'<>|]*+"
_PATH = (  # on a drive; of a server; and \from\the\root or .\from\here, if no written break begins it
    rf"\b[A-Za-z]:\\{_SEGMENTS}|\\\\\w{_SEGMENTS}"
    r"|(?<!\S)\.{0,2}\\(?![nrt](?:\\|[A-Z]))[\w.-]++(?:\\[\w.-]++)++"
)
_WRITTEN = re.compile(rf"(?P<path>{_PATH})|(?P<breaks>(?:\\r\\n|\\[rn])++)|(?P<tab>\\t)")
SHARE = 20
_BETWEEN_SENTENCES = re.compile(r"[,.;:!?>] ?(?:\\r)?\\n(?![a-z])|\\n(?:\\r)?\\n|(?<=[^\W\d_])\\n[A-Z]")
_SMALL = re.compile(r"[a-z0-9_]")


def without_written_breaks(text: str) -> str:
    """Breaks and tabs instead of what stands for them, in a text of a file that wrote its breaks out."""
    if "\\" not in text or "\n" in text.strip():
        return text
    return _WRITTEN.sub(_meant, text)


def are_written(texts: Iterable[str]) -> bool:
    """Whether a file wrote breaks out: one in `SHARE` of its texts with breaks has them between sentences."""
    written = real = 0
    for text in texts:
        if "\n" in text.strip():
            real += 1
        elif "\\" in text:
            written += _BETWEEN_SENTENCES.search(text) is not None
    return written * SHARE > real


def _meant(match: re.Match[str]) -> str:
    if match["path"]:
        return match[0]
    before, behind = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    if (before.isalnum() and behind in "\"'" and behind) or (_SMALL.match(behind) and not _ends_sentence(before)):
        return match[0]
    if match["tab"]:
        return " "
    return "\n" * match[0].replace("\\r\\n", "\\n").count("\\")


def _ends_sentence(before: str) -> bool:
    return not before or before.isspace() or before in ",.;:!?>\N{HORIZONTAL ELLIPSIS}"
