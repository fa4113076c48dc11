"""Which ticket stands in which split: whole groups, stratified by label and language, ordered by their content.

Within a stratum, groups are ordered by a hash of their content and cut at the wanted shares. Rows may be shuffled
without any effect, and a new row moves at most one group over each border of its own stratum. (A row that joins a group
and has the smallest key of it gives that group another place.)
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import DataError
from data_prep.intake import hash64

SPLITS = ("training", "validation", "test")
SPLITS_FILE = "splits.csv"
TRAINING, VALIDATION, TEST, NOWHERE = 0, 1, 2, -1


@dataclass(frozen=True)
class Grouped:
    """The different tickets of an intake and the groups that they form.

    Attributes:
        rows: int64 (U,), the row of the intake that stands for each different ticket.
        keys: uint64 (U,), sorted.
        groups: int64 (U,), index of the group's smallest key.
        labels: int32 (U,), of the ticket's group, by majority of all its rows.
        strata_languages: int32 (U,), of the ticket's group, by majority.
        conflicts: groups whose rows disagree: label counts of each.
    """

    rows: np.ndarray
    keys: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    strata_languages: np.ndarray
    conflicts: dict[int, Counter[int]]
    relabelled: int


def resolve(
    keys: np.ndarray, contents: np.ndarray, labels: np.ndarray, languages: np.ndarray, group_of_key: np.ndarray
) -> Grouped:
    """Settle label and language of every group by majority, and choose the row that stands for each key.

    Args:
        keys, contents: uint64 (N,), of every row; `contents` orders rows of one key.
        labels, languages: int32 (N,).
        group_of_key: int64 (U,), for the sorted different keys.
    """
    different, inverse = np.unique(keys, return_inverse=True)
    groups = group_of_key[inverse]
    label_of, conflicts = _majority(groups, labels, len(different))
    language_of, _ = _majority(groups, languages, len(different))
    order = np.lexsort((contents, labels != label_of[groups], keys))
    first = np.ones(len(order), bool)
    first[1:] = keys[order][1:] != keys[order][:-1]
    rows = order[first]
    relabelled = int((labels[rows] != label_of[group_of_key]).sum())
    return Grouped(
        rows, different, group_of_key, label_of[group_of_key], language_of[group_of_key], conflicts, relabelled
    )


def _majority(groups: np.ndarray, values: np.ndarray, count: int) -> tuple[np.ndarray, dict[int, Counter[int]]]:
    """The value that most rows of each group have (the smallest of equally many), and the groups that disagree."""
    pairs, counts = np.unique(np.stack((groups, values), axis=1), axis=0, return_counts=True)
    result = np.zeros(count, np.int32)
    order = np.lexsort((-pairs[:, 1], counts, pairs[:, 0]))  # the last of a group wins: most rows, then smallest value
    result[pairs[order, 0]] = pairs[order, 1]
    disagreeing = set(pairs[:-1, 0][pairs[1:, 0] == pairs[:-1, 0]].tolist())
    conflicts: dict[int, Counter[int]] = defaultdict(Counter)
    for (group, value), times in zip(pairs.tolist(), counts.tolist(), strict=True):
        if group in disagreeing:
            conflicts[group][value] = times
    return result, dict(conflicts)


def split(
    grouped: Grouped,
    labels: np.ndarray,
    language_names: Sequence[str],
    shares: Sequence[float],
    seed: int,
    frozen: dict[int, int] | None = None,
) -> np.ndarray:
    """The split of every different ticket.

    Args:
        labels: int32 (U,), after rare ones were merged; negative for tickets that are left out.
        language_names: what `grouped.strata_languages` index.
        shares: of training, validation and test.
        frozen: key → split of an earlier preparation.
    Returns:
        int8 (U,): TRAINING, VALIDATION, TEST, or NOWHERE for tickets that are left out and for new ones whose group has
        frozen tickets in more than one split.
    """
    kept = labels >= 0
    places, free = _hold(grouped, kept, frozen) if frozen else (np.full(len(labels), NOWHERE, np.int8), kept)
    groups, first, member_of, sizes = np.unique(
        grouped.groups[free], return_index=True, return_inverse=True, return_counts=True
    )
    ticket = np.flatnonzero(free)[first]  # one of each group; all of a group share label and language
    order = np.array([hash64(b"%d:%d" % (seed, key)) for key in grouped.keys[groups].tolist()], np.uint64)
    ranked = np.lexsort((grouped.keys[groups], order, grouped.strata_languages[ticket], labels[ticket]))
    strata = np.stack((labels[ticket], grouped.strata_languages[ticket]))[:, ranked]
    borders = np.flatnonzero((strata[:, 1:] != strata[:, :-1]).any(axis=0)) + 1
    group_places = np.empty(len(groups), np.int8)
    for stratum in np.split(ranked, borders) if len(ranked) else []:
        language = language_names[int(grouped.strata_languages[ticket[stratum[0]]])]
        group_places[stratum] = _cut(sizes[stratum], shares, _rounding(language))
    places[free] = group_places[member_of]
    return places


def _cut(sizes: np.ndarray, shares: Sequence[float], rounding: float) -> np.ndarray:
    """Splits of a stratum's groups, in their order: test from the front, validation from the back.

    A group stands where its middle ticket stands. A ticket more moves each border by less than one ticket against the
    tickets around it, so that at most one group changes sides.

    Args:
        sizes: int64 (G,), tickets of each group.
        rounding: what is added to the test split's share before it is rounded down, in tickets; validation gets the
            complement, so that the errors of the two cancel and training has its share.
    """
    middles, total = np.cumsum(sizes) - sizes / 2, sizes.sum()
    places = np.full(len(sizes), TRAINING, np.int8)
    places[total - middles <= total * shares[VALIDATION] + 0.5 - rounding] = VALIDATION
    places[middles <= total * shares[TEST] + rounding - 0.5] = TEST
    return places


def _rounding(language: str) -> float:
    """1/4 for half of the languages (en, es), 3/4 for the others (de, fr, pt): over two of a label errors cancel.

    The name alone decides, not the languages that there are: a stratum never moves because of another one.
    """
    return 0.25 + 0.5 * (ord(language[:1] or "a") % 2 == 0)


def _hold(grouped: Grouped, kept: np.ndarray, frozen: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The splits that an earlier preparation decides (NOWHERE elsewhere), and which tickets are free of it."""
    places = np.array([frozen.get(key, NOWHERE) for key in grouped.keys.tolist()], np.int8)
    places[~kept] = NOWHERE
    held = np.flatnonzero(places != NOWHERE)
    lowest, highest = np.full(len(places), 127, np.int8), np.full(len(places), NOWHERE, np.int8)
    np.minimum.at(lowest, grouped.groups[held], places[held])
    np.maximum.at(highest, grouped.groups[held], places[held])
    lowest, highest = lowest[grouped.groups], highest[grouped.groups]
    joining = kept & (places == NOWHERE) & (lowest == highest)
    return np.where(joining, highest, places), kept & (highest == NOWHERE)


def groups_apart(grouped: Grouped, places: np.ndarray) -> int:
    """Groups with tickets in more than one split, which only an earlier preparation can have put there."""
    placed = places != NOWHERE
    pairs = np.unique(np.stack((grouped.groups[placed], places[placed])), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


def write_splits(file: Path, grouped: Grouped, places: np.ndarray) -> None:
    """Note every ticket's key, group and split: what `--frozen` reads, and what a check for leakage needs."""
    with file.open("w", encoding="ascii", newline="") as out:
        out.write("key,group,split\n")
        for index in np.flatnonzero(places >= 0).tolist():
            key, group = int(grouped.keys[index]), int(grouped.keys[grouped.groups[index]])
            out.write(f"{key:016x},{group:016x},{SPLITS[places[index]]}\n")


def read_splits(folder: Path) -> dict[int, int]:
    """Key → split of a folder that was prepared earlier.

    Raises:
        DataError: the folder has none, or they are damaged.
    """
    file = folder / SPLITS_FILE
    try:
        with file.open(encoding="ascii", newline="") as lines:
            return {int(row["key"], 16): SPLITS.index(row["split"]) for row in csv.DictReader(lines)}
    except FileNotFoundError:
        raise DataError(f"{folder} holds no {SPLITS_FILE}: name a folder that nemo-run prepare wrote.") from None
    except (ValueError, KeyError, TypeError, csv.Error):
        raise DataError(f"{file} is damaged: prepare that folder again.") from None
