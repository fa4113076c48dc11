"""Write the selected tickets: JSONL for each split, and packed sequences."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, TextIO

from common.errors import DataError
from common.progress import Progress, quiet, reported
from data_prep.intake import Intake
from data_prep.nemo_dataset import packed_sequence_arguments
from data_prep.options import PrepareOptions
from data_prep.packing import as_report, write_metadata, write_packed
from data_prep.prepare_report import PrepareReport, describe_lengths
from data_prep.rendering import Renderer, row_line
from data_prep.selection import Selection
from data_prep.splitting import NOWHERE, SPLITS

Table = dict[str, dict[str, dict[str, int]]]


def write_rows(
    intake: Intake,
    selection: Selection,
    renderer: Renderer,
    folder: Path,
    options: PrepareOptions,
    report: PrepareReport,
    progress: Progress = quiet,
) -> None:
    """Write training.jsonl, validation.jsonl and test.jsonl; the report gets the counts and lengths.

    Raises:
        DataError: nothing is left to train on, or a split that has a share is empty.
    """
    table: Table = defaultdict(lambda: defaultdict(Counter))
    happened = Counter[str]()
    for number, split in enumerate(SPLITS):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8", newline="") as file:
            lengths = _write_split(intake, selection, renderer, number, options, file, table, happened, progress)
        report.splits[split] = sum(counts[split] for languages in table.values() for counts in languages.values())
        if renderer.tokenizer is not None:
            report.lengths[split] = describe_lengths(lengths)
        if not report.splits[split] and options.shares[number] > 0:
            left = sum(report.splits.values())
            raise DataError(
                f"the {split} split is empty, with {left:,} tickets before it: give more tickets, or another --split."
            )
    report.cut_tickets, report.repeated = happened["cut"], happened["repeated"]
    if happened["dropped"]:
        report.dropped["longer than max_length"] = happened["dropped"]
    report.table = {
        label: {language: dict(counts) for language, counts in sorted(table[label].items())} for label in sorted(table)
    }


def _write_split(
    intake: Intake,
    selection: Selection,
    renderer: Renderer,
    number: int,
    options: PrepareOptions,
    file: TextIO,
    table: Table,
    happened: Counter[str],
    progress: Progress,
) -> list[int]:
    """Write one split; returns the tokens of its rows where they are counted."""
    lengths = []
    seen: set[int] = set()
    tickets = selection.in_order(number, options)
    for index in reported(tickets, f"writing {SPLITS[number]}", len(tickets), progress):
        row = int(selection.grouped.rows[index])
        label = selection.names[selection.labels[index]]
        language = intake.language_names[intake.languages[row]]
        ticket = intake.spool[row]
        rendered = renderer.render(ticket, label)
        again = index in seen
        seen.add(index)
        if rendered is None:
            happened["dropped"] += not again
            selection.places[index] = NOWHERE
            continue
        happened["cut"] += rendered.cut
        happened["repeated"] += again
        lengths.append(rendered.tokens or 0)
        table[label][language][SPLITS[number]] += 1
        file.write(row_line(ticket, rendered, label, language))
    return lengths


def write_all_packed(folder: Path, tokenizer: Any, size: int, progress: Progress = quiet) -> dict[str, dict[str, Any]]:
    """Pack training and validation into `packed/`; test stays as it is, since nobody trains on it."""
    (folder / "packed").mkdir()
    paths = packed_sequence_arguments(folder, size)
    packings = {
        split: write_packed(folder / f"{split}.jsonl", Path(paths[field]), tokenizer, size, progress)
        for split, field in (("training", "packed_train_data_path"), ("validation", "packed_val_data_path"))
    }
    write_metadata(Path(paths["packed_metadata_path"]), list(packings.values()))
    return as_report(packings)
