"""Labels and languages as numbers, with one spelling for each."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from data_prep.cleaning import cleaned_name

MANY_LABELS = 10
"""From more labels than these on, most of them once, they are no labels."""
KEPT_PLACES = 5000


class LabelCodes:
    """Numbers for names; names with one `key` are one: by the spelling seen most, or, `by_key`, by the key itself."""

    def __init__(self, key: Callable[[str], str], *, by_key: bool = False) -> None:
        self._key, self._by_key = key, by_key
        self._codes: dict[str, int] = {}
        self._places: list[str] = []

    def of(self, name: str, place: str = "") -> int:
        """The number of a name; `place` says where it stands."""
        code = self._codes.setdefault(name, len(self._codes))
        if code == len(self._places) and code < KEPT_PLACES:
            self._places.append(place)
        return code

    def resolved(self, codes: np.ndarray) -> tuple[list[str], np.ndarray, int]:
        """Unified names, sorted, each row's index among them, and how many rows' names changed."""
        counts = np.bincount(codes, minlength=len(self._codes)).tolist()
        best: dict[str, tuple[int, str]] = {}
        for name, code in self._codes.items():
            key = self._key(name)
            best[key] = min(best.get(key, (1, "")), (-counts[code], name))
        chosen = {key: key if self._by_key else name for key, (_, name) in best.items()}
        unified = [chosen[self._key(name)] for name in self._codes]
        names = sorted(set(unified))
        place = {name: index for index, name in enumerate(names)}
        changed = sum(counts[code] for name, code in self._codes.items() if unified[code] != name)
        return names, np.array([place[name] for name in unified], np.int32)[codes], changed

    def remarks(self, codes: np.ndarray) -> list[str]:
        """A warning where most labels stand once, with the places of some: lines of a text may have become tickets."""
        counts = np.bincount(codes, minlength=len(self._codes))
        once = np.flatnonzero(counts == 1).tolist()
        if len(self._codes) <= MANY_LABELS or 2 * len(once) <= len(self._codes):
            return []
        names = list(self._codes)
        shown = "; ".join(
            f"{names[code][:40]!r} at {self._places[code]}" for code in once[:3] if code < len(self._places)
        )
        return [
            f"{len(once):,} of {len(names):,} labels stand once ({shown}): look whether a text became several tickets, "
            "or name another column with --label."
        ]


def one_spelling(label: str) -> str:
    """Labels that differ in case, `_`, `-`, `&` or blanks only are one; C++ and C# stay two."""
    return " ".join(re.sub(r"[_\-]", " ", label.casefold().replace("&", " and ")).split())


def language_code(language: str) -> str:
    """The language code behind an export's spelling: `de` for DE, de-DE and de_AT."""
    return re.split(r"[-_]", cleaned_name(language).casefold(), maxsplit=1)[0].strip()
