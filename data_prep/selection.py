"""Which tickets are kept, with which label, in which split and how often."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.progress import Progress, quiet
from data_prep import duplicates, splitting
from data_prep.intake import Intake, hash64
from data_prep.options import PrepareOptions
from data_prep.prepare_report import PrepareReport
from data_prep.splitting import NOWHERE, TRAINING, Grouped

KEPT_CONFLICTS = 20


@dataclass(frozen=True)
class Selection:
    """The different tickets, as `Grouped` numbers them.

    Attributes:
        names: the labels that are kept, sorted.
        labels: int32 (U,), index into `names`; negative where the label was dropped.
        places: int8 (U,), the split of each.
    """

    grouped: Grouped
    names: list[str]
    labels: np.ndarray
    places: np.ndarray

    def in_order(self, split: int, options: PrepareOptions) -> list[int]:
        """The tickets of a split in an order that only their content and the seed decide; `balance` is applied."""
        tickets = np.flatnonzero(self.places == split).tolist()
        if split == TRAINING and options.balance == "oversample":
            tickets = self._oversampled(tickets, options.seed)
        copies = Counter[int]()
        ranked = []
        for index in tickets:
            ranked.append((self._rank(index, options.seed, copies[index]), index))
            copies[index] += 1
        return [index for _, index in sorted(ranked)]

    def capped(self, options: PrepareOptions) -> np.ndarray:
        """Training tickets beyond the labels' mean count: of each label those that come last in order."""
        members = self._training_by_label(options.seed)
        cap = ceil(sum(map(len, members.values())) / len(members)) if members else 0
        return np.array([index for tickets in members.values() for index in tickets[cap:]], np.int64)

    def _oversampled(self, training: list[int], seed: int) -> list[int]:
        members = self._training_by_label(seed)
        most = max(map(len, members.values()), default=0)
        more = [tickets[place % len(tickets)] for tickets in members.values() for place in range(len(tickets), most)]
        return training + more

    def _training_by_label(self, seed: int) -> dict[int, list[int]]:
        members: dict[int, list[int]] = defaultdict(list)
        for index in np.flatnonzero(self.places == TRAINING).tolist():
            members[int(self.labels[index])].append(index)
        return {label: sorted(tickets, key=lambda i: (self._rank(i, seed), i)) for label, tickets in members.items()}

    def _rank(self, index: int, seed: int, copy: int = 0) -> int:
        return hash64(b"order %d:%d:%d" % (seed, self.grouped.keys[index], copy))


def select(intake: Intake, options: PrepareOptions, report: PrepareReport, progress: Progress = quiet) -> Selection:
    """Group, resolve, merge rare labels, split and cap; `report` receives the counts of what was lost.

    Raises:
        DataError: the folder of `frozen` cannot be read, or every label is rare.
    """
    different, first = np.unique(intake.keys, return_index=True)
    order = np.lexsort((intake.contents, intake.keys))
    first = order[np.searchsorted(intake.keys[order], different)]

    def words(index: int) -> str:
        return intake.spool[int(first[index])].words

    group_of_key = duplicates.near_duplicates(different, words, options.near_duplicates, progress)
    grouped = splitting.resolve(intake.keys, intake.contents, intake.labels, intake.languages, group_of_key)
    _report_groups(intake, grouped, report)
    names, labels = _merge_rare(intake.label_names, grouped.labels, options, report)
    frozen = splitting.read_splits(Path(options.frozen)) if options.frozen else None
    places = splitting.split(grouped, labels, intake.language_names, options.shares, options.seed, frozen)
    if frozen:
        report.duplicates["groups_held_apart_by_frozen"] = splitting.groups_apart(grouped, places)
    selection = Selection(grouped, names, labels, places)
    bridging = int(((places == NOWHERE) & (labels >= 0)).sum())
    if bridging:
        report.dropped["duplicates of frozen tickets in two splits"] = bridging
    if options.balance == "cap":
        surplus = selection.capped(options)
        places[surplus] = NOWHERE
        report.dropped["over the cap of their label"] = len(surplus)
    return selection


def _report_groups(intake: Intake, grouped: Grouped, report: PrepareReport) -> None:
    exact = len(intake.keys) - len(grouped.keys)
    if exact:
        report.dropped["exact duplicates"] = exact
    _, sizes = np.unique(grouped.groups, return_counts=True)
    examples = sorted(grouped.conflicts.items(), key=lambda item: (-sum(item[1].values()), int(grouped.keys[item[0]])))
    report.duplicates = {
        "exact_copies": exact,
        "near_duplicate_groups": int((sizes > 1).sum()),
        "tickets_in_them": int(sizes[sizes > 1].sum()),
        "largest_group": int(sizes.max()),
        "groups_with_conflicting_labels": len(grouped.conflicts),
        "tickets_relabelled": grouped.relabelled,
    }
    report.conflicts = [
        {
            "text": intake.spool[int(grouped.rows[group])].text[:200],
            "labels": {intake.label_names[label]: count for label, count in votes.most_common()},
            "resolved": intake.label_names[int(grouped.labels[group])],
        }
        for group, votes in examples[:KEPT_CONFLICTS]
    ]


def _merge_rare(
    names: list[str], labels: np.ndarray, options: PrepareOptions, report: PrepareReport
) -> tuple[list[str], np.ndarray]:
    """Labels that are kept, and each ticket's index among them; -1 where its label was rare and is dropped."""
    counts = np.bincount(labels, minlength=len(names))
    rare = [index for index, count in enumerate(counts.tolist()) if count < options.min_count]
    kept = {name for index, name in enumerate(names) if index not in set(rare) and counts[index]}
    rest = options.rest if rare and any(counts[rare]) else None
    final = sorted(kept | ({rest} if rest is not None else set()))
    place = {name: index for index, name in enumerate(final)}
    table = np.array([place.get(name if name in kept else rest or "", -1) for name in names], np.int32)
    merged = table[labels]
    if not final:
        raise DataError(
            f"no label has {options.min_count} tickets, the most have {counts.max()}: lower min_count, or name a rest."
        )
    lost = int((merged < 0).sum())
    if lost:
        report.dropped["labels with too few tickets"] = lost
    if rest is not None:
        report.merged_labels = {names[index]: int(counts[index]) for index in rare if counts[index]}
    return final, merged
