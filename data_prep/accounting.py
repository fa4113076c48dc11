"""An account of every record of a source by a reader that is not ours: pandas or pyarrow, where they can read it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.errors import DataError
from common.values import one_line
from data_prep.readers.rows import Source

SHOWN = 20


@dataclass
class Records:
    """The records that we read of a source, by the hashes of their values, and the lines where they begin."""

    hashes: array[int] = field(default_factory=lambda: array("q"))
    lines: array[int] = field(default_factory=lambda: array("q"))

    def add(self, line: int, values: Sequence[str]) -> None:
        self.hashes.append(hash(tuple(values)))
        self.lines.append(line)


def account(source: Source, names: Sequence[str], ours: Records, damaged: int) -> dict[str, Any]:
    """Compare our records with another reader's, value by value of the columns `names`.

    Returns:
        reader (None: no other one reads this kind), our records and damaged ones, the reader's records, how many are
        the same in both; those that only we have, with up to 20 of their lines, and how many only the other has, among
        them what it makes of the damaged ones; or why the reader gave up.
    """
    found: dict[str, Any] = {"reader": None, "records": len(ours.hashes), "damaged": damaged}
    other = source.read_by_another(names)
    if other is None:
        return found
    found["reader"] = other.name
    theirs = array("q")
    try:
        theirs.extend(hash(tuple(values)) for values in other.rows)
    except DataError:
        raise
    # what a parser raises on a file that it cannot read is its own: pandas' ParserError and pyarrow's ArrowInvalid
    except (ValueError, OverflowError, KeyError) as error:
        return {**found, "gave_up": one_line(error)}
    only_ours = _surplus(np.array(ours.hashes, np.int64), np.array(theirs, np.int64))
    same = len(ours.hashes) - len(only_ours)
    lines = sorted(ours.lines[place] for place in only_ours[:SHOWN].tolist())
    return {
        **found,
        "its_records": len(theirs),
        "same": same,
        "only_ours": len(only_ours),
        "lines_of_only_ours": lines,
        "only_its": len(theirs) - same,
    }


def remarks_on(name: str, found: dict[str, Any]) -> list[str]:
    """A warning where we read records that the other reader does not have."""
    if not found.get("only_ours"):
        return []
    lines = ", ".join(f"{line:,}" for line in found["lines_of_only_ours"][:5])
    return [
        f"{name}: {found['only_ours']:,} of {found['records']:,} rows are read otherwise by {found['reader']}, such as "
        f"those at lines {lines}: look at them."
    ]


def _surplus(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Places of our hashes that the others lack, each as often as it is missing; int64, in their order."""
    order = np.argsort(ours, kind="stable")
    ranked = ours[order]
    copy = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)  # the how-manieth of its kind
    theirs = np.sort(theirs)
    count = np.searchsorted(theirs, ranked, side="right") - np.searchsorted(theirs, ranked, side="left")
    return np.sort(order[copy >= count])
