"""A prepared folder (data_prep writes it) as evaluation reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError


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
class Routing:
    """The prompt around a ticket and the answers of the labels, from labels.json.

    Attributes:
        completions: each label's answer as training renders it, up to and with `end`.
        before, after: the prompt around a ticket; None for conversations, and where an earlier version prepared them.
        skip: cleaning rules that were left out.
    """

    completions: dict[str, str]
    before: str | None
    after: str | None
    end: str
    skip: list[str]

    @property
    def labels(self) -> list[str]:
        return list(self.completions)

    @property
    def around(self) -> tuple[str, str]:
        """The prompt: `before` and `after`.

        Raises:
            DataError: labels.json does not have it.
        """
        if self.before is None or self.after is None:
            raise DataError("labels.json names no prompt: prepare the tickets again; conversations have none.")
        return self.before, self.after

    @property
    def answers(self) -> dict[str, str]:
        """Label by the answer that a server may give, without the end token."""
        _ = self.around
        return {completion.removesuffix(self.end): label for label, completion in self.completions.items()}


def is_prepared(folder: Path) -> bool:
    """Whether `prepare` wrote a folder."""
    return (folder / "labels.json").is_file()


@dataclass(frozen=True)
class Prepared:
    """The splits of a prepared folder, and the prompt and answers of their tickets."""

    routing: Routing
    training: list[Ticket]
    validation: list[Ticket]
    test: list[Ticket]

    @property
    def labels(self) -> list[str]:
        return self.routing.labels

    @property
    def completions(self) -> dict[str, str]:
        """Each label's answer as training renders it."""
        return self.routing.completions

    def split(self, name: str) -> list[Ticket]:
        """The tickets of `training`, `validation` or `test`.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        splits = {"training": self.training, "validation": self.validation, "test": self.test}
        if name not in splits:
            raise DataError(f"there is no split {name!r}: choose from {', '.join(splits)}.")
        if not splits[name]:
            raise DataError(f"the {name} split is empty: prepare more tickets, or a larger share of it.")
        return splits[name]


def load_prepared(folder: Path) -> Prepared:
    """Read a prepared folder.

    Raises:
        DataError: a file is missing or damaged, the test split is empty, or a ticket has an unknown label.
    """
    routing = load_routing(folder)
    splits = {split: _read(folder / f"{split}.jsonl") for split in ("training", "validation", "test")}
    if not splits["test"]:
        raise DataError(f"{folder}/test.jsonl is empty: prepare more tickets, or a larger test share.")
    unknown = {ticket.label for tickets in splits.values() for ticket in tickets} - set(routing.completions)
    if unknown:
        raise DataError(
            f"{folder} has tickets with labels that labels.json lacks, such as {min(unknown)!r}: prepare again."
        )
    return Prepared(routing, **splits)


def training_samples(folder: Path, size: int | None) -> int:
    """Samples of an epoch: the training rows of a prepared folder, or its sequences packed to `size` tokens.

    Raises:
        DataError: report.json is missing or damaged, or says nothing of packing.
    """
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return int(report["splits"]["training"] if size is None else report["packing"]["training"]["sequences"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder}/report.json is missing or damaged: prepare the tickets again.") from None


def load_routing(folder: Path) -> Routing:
    """Read labels.json of a prepared folder.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        stated = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        completions = {str(item["label"]): str(item["completion"]) for item in stated["labels"]}
        prompt = stated.get("prompt") or {"before": None, "after": None, "end": ""}
        return Routing(completions, skip=list(stated.get("skip", [])), **prompt)
    except FileNotFoundError:
        raise DataError(f"{folder} holds no labels.json: name a folder that nemo-run prepare wrote.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{folder}/labels.json is damaged: prepare the tickets again.") from None


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
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError(f"{file}, line {number}, is damaged: prepare the tickets again.") from None
        tickets.append(Ticket(*fields))
    return tickets
