"""Write the selected tickets: JSONL for each split, and packed sequences."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, TextIO

from common.errors import DataError
from common.progress import Progress, quiet, reported
from data_prep.conversations import LeftOutError
from data_prep.intake import Intake
from data_prep.nemo_dataset import packed_sequence_arguments
from data_prep.options import PrepareOptions
from data_prep.packing import as_report, write_metadata, write_packed
from data_prep.prepare_report import PrepareReport, describe_lengths
from data_prep.rendering import Renderer
from data_prep.row_format import as_line
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
    for number, split in enumerate(SPLITS):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8", newline="") as file:
            lengths = _write_split(intake, selection, renderer, number, options, file, table, report, progress)
        report.splits[split] = sum(counts[split] for languages in table.values() for counts in languages.values())
        if renderer.tokenizer is not None:
            report.lengths[split] = describe_lengths(lengths)
        if not report.splits[split] and options.shares[number] > 0:
            left, lost = sum(report.splits.values()), report.lost()
            raise DataError(
                f"the {split} split is empty, with {left:,} tickets before it{f' ({lost})' if lost else ''}: "
                "give more tickets, or another --split."
            )
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
    report: PrepareReport,
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
        again = index in seen
        seen.add(index)
        try:
            rows = renderer.rows(ticket, label)
        except LeftOutError as reason:
            report.dropped[str(reason)] = report.dropped.get(str(reason), 0) + (not again)
            selection.places[index] = NOWHERE
            continue
        report.cut_tickets += any(row.cut for row in rows)
        report.repeated += again
        report.further_rows += len(rows) - 1
        table[label][language][SPLITS[number]] += len(rows)
        for row in rows:
            lengths.append(row.tokens or 0)
            about = {"id": ticket.id, "label": label, "language": language, "ticket": ticket.text}
            file.write(as_line(row.fields | about))
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
