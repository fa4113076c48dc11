"""The report of a preparation as data: an account of every row, for report.json, the page and the console."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

HISTOGRAM_BINS = 24


@dataclass
class PrepareReport:
    """Every row is in `splits` or in `dropped`; oversampling repeats rows, conversations may become several.

    Attributes:
        further_rows: of conversations, beyond the first of each (data_prep.turns).
        table: label → language → split → rows.
        lengths: split → tokens of prompt and answer (percentiles and a histogram), where a tokenizer was given.
        remarks: sentences on how the sources were understood, and what is odd about them.
        accounts: source → what a reader that is not ours makes of its records (data_prep.accounting).
        current: the folder was there already, made from the same input.
    """

    rows: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    further_rows: int = 0
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    accounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    cleaned: dict[str, int] = field(default_factory=dict)
    recoded_lines: int = 0
    without_subject: int = 0
    several_labels: int = 0
    damaged: list[str] = field(default_factory=list)
    duplicates: dict[str, int] = field(default_factory=dict)
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    merged_labels: dict[str, int] = field(default_factory=dict)
    table: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    lengths: dict[str, dict[str, Any]] = field(default_factory=dict)
    cut_tickets: int = 0
    packing: dict[str, dict[str, Any]] = field(default_factory=dict)
    before_and_after: list[list[str]] = field(default_factory=list)
    current: bool = False

    @property
    def labels(self) -> dict[str, int]:
        """Rows of each label in all splits, most first."""
        counts = Counter(
            {
                label: sum(sum(splits.values()) for splits in languages.values())
                for label, languages in self.table.items()
            }
        )
        return dict(counts.most_common())

    @property
    def languages(self) -> dict[str, int]:
        """Rows of each language in all splits, most first."""
        counts = Counter[str]()
        for languages in self.table.values():
            for language, splits in languages.items():
                counts[language] += sum(splits.values())
        return dict(counts.most_common())

    def summary(self) -> str:
        """One line for the console."""
        kept = ", ".join(f"{count:,} {split}" for split, count in self.splits.items())
        lost = self.lost()
        further = f" ({self.further_rows:,} of them further turns of conversations)" if self.further_rows else ""
        return f"{self.rows:,} rows: {kept}{further}" + (f"; dropped {lost}" if lost else "")

    def lost(self) -> str:
        """Dropped rows by reason, in words."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items() if count)

    def stored(self) -> dict[str, Any]:
        """The content of report.json."""
        return {name: value for name, value in asdict(self).items() if name != "current"}


def describe_lengths(lengths: Sequence[int]) -> dict[str, Any]:
    """Percentiles, total and a histogram (edges, counts) of row lengths in tokens."""
    if not lengths:
        return {}
    counts, edges = np.histogram(lengths, bins=HISTOGRAM_BINS)
    percentiles = np.percentile(lengths, [0, 50, 90, 99, 100])
    names = ("shortest", "median", "p90", "p99", "longest")
    return {
        **{name: round(float(value), 1) for name, value in zip(names, percentiles, strict=True)},
        "tokens": int(sum(lengths)),
        "histogram": {"edges": [round(float(edge), 1) for edge in edges], "counts": counts.tolist()},
    }
