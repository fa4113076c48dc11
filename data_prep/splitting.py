"""Which ticket stands in which split: whole groups, stratified by label and language, ordered by their content.

Within a stratum, groups are ordered by a hash of their content and cut at the wanted shares. Rows may be shuffled
without any effect, and a new row moves at most one group over each border of its own stratum.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path

import numpy as np

from data_prep.intake import hash64
from errors import DataError

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
    shares: Sequence[float],
    seed: int,
    frozen: dict[int, int] | None = None,
) -> np.ndarray:
    """The split of every different ticket.

    Args:
        labels: int32 (U,), after rare ones were merged; negative for tickets that are left out.
        shares: of training, validation and test.
        frozen: key → split of an earlier preparation.
    Returns:
        int8 (U,): TRAINING, VALIDATION, TEST, or NOWHERE for tickets that are left out and for new ones whose group has
        frozen tickets in more than one split.
    """
    result = np.full(len(labels), NOWHERE, np.int8)
    members: dict[int, list[int]] = defaultdict(list)
    for index in np.flatnonzero(labels >= 0).tolist():
        members[int(grouped.groups[index])].append(index)
    strata: dict[tuple[int, int], list[int]] = defaultdict(list)
    for group, tickets in members.items():
        held = (
            {index: frozen[key] for index in tickets if (key := int(grouped.keys[index])) in (frozen or {})}
            if frozen
            else {}
        )
        if held:
            places = set(held.values())
            for index in tickets:
                result[index] = held.get(index, places.copy().pop() if len(places) == 1 else NOWHERE)
        else:
            strata[int(labels[tickets[0]]), int(grouped.strata_languages[tickets[0]])].append(group)
    offsets = _offsets(strata)
    for stratum, groups in strata.items():
        groups.sort(key=lambda group: (hash64(b"%d:%d" % (seed, grouped.keys[group])), int(grouped.keys[group])))
        test = floor(len(groups) * shares[TEST] + offsets[stratum])
        validation = floor(len(groups) * shares[VALIDATION] + offsets[stratum])
        for place, group in enumerate(groups):
            where = TEST if place < test else VALIDATION if place < test + validation else TRAINING
            result[members[group]] = where
    return result


def _offsets(strata: Iterable[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """What is added before a stratum's share is rounded down, so that the errors of a label's languages cancel.

    Hermite's identity: for m strata of one size, the sum of floor(x + i/m) is floor(m·x).
    """
    languages: dict[int, list[int]] = defaultdict(list)
    for label, language in sorted(strata):
        languages[label].append(language)
    return {
        (label, language): (place + 0.5) / len(found)
        for label, found in languages.items()
        for place, language in enumerate(found)
    }


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
