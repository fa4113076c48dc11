"""A prepared folder (data_prep writes it) as evaluation reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from errors import DataError


@dataclass(frozen=True)
class Ticket:
    """One ticket: the rendered prompt (`input`), the answer training wants (`output`) and the plain text."""

    id: str
    input: str
    output: str
    label: str
    language: str
    text: str


@dataclass(frozen=True)
class Prepared:
    """The splits and the label set; `completions` gives each label's text as training renders it."""

    labels: list[str]
    completions: dict[str, str]
    training: list[Ticket]
    validation: list[Ticket]
    test: list[Ticket]


def load_prepared(folder: Path) -> Prepared:
    """Read a prepared folder.

    Raises:
        DataError: a file is missing or damaged, the test split is empty, or a ticket has an unknown label.
    """
    try:
        stated = json.loads((folder / "labels.json").read_text(encoding="utf-8"))["labels"]
        completions = {str(item["label"]): str(item["completion"]) for item in stated}
    except FileNotFoundError:
        raise DataError(f"{folder} holds no labels.json: name a folder that nemo-run prepare wrote.") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{folder}/labels.json is damaged: prepare the tickets again.") from None
    splits = {split: _read(folder / f"{split}.jsonl") for split in ("training", "validation", "test")}
    if not splits["test"]:
        raise DataError(f"{folder}/test.jsonl is empty: prepare more tickets, or a larger test share.")
    unknown = {ticket.label for tickets in splits.values() for ticket in tickets} - set(completions)
    if unknown:
        raise DataError(f"{folder} has tickets with labels that labels.json lacks, such as {min(unknown)!r}.")
    return Prepared(list(completions), completions, **splits)


def _read(file: Path) -> list[Ticket]:
    try:
        # not splitlines: JSON leaves U+2028 and U+0085 as they are inside a string
        lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except FileNotFoundError:
        raise DataError(f"{file} is missing: prepare the tickets again.") from None
    if lines == [""]:
        return []
    tickets = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            fields = [str(row[name]) for name in ("id", "input", "output", "label", "language", "ticket")]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{file}, line {number}, is damaged: prepare the tickets again.") from None
        tickets.append(Ticket(*fields))
    return tickets
