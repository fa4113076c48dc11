"""A ticket source → cleaned, de-duplicated, split and rendered JSONL."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import artifacts
from data_prep import harmony
from data_prep.options import PrepareOptions
from data_prep.sources import Columns, Row, read_source
from errors import DataError

SPLITS = ("training", "validation", "test")


@dataclass
class PrepareReport:
    """What became of every row of the source."""

    rows: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """One line for the console."""
        kept = ", ".join(f"{count:,} {split}" for split, count in self.splits.items())
        lost = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items() if count)
        return f"{self.rows:,} rows: {kept}" + (f"; dropped {lost}" if lost else "")


@dataclass(frozen=True)
class _Ticket:
    id: str
    text: str
    label: str
    language: str


def prepare(source: str | Path, out: Path, options: PrepareOptions | None = None) -> PrepareReport:
    """Write training.jsonl, validation.jsonl, test.jsonl, labels.json and report.json into `out`.

    Args:
        source: `sample`, a CSV, TSV, JSONL or Parquet file, or a folder that this function wrote, which is copied.
    Raises:
        DataError: the source is missing, empty, unreadable or lacks a column, or no label has two tickets.
    """
    options = options or PrepareOptions()
    if options.validation_share <= 0 or options.test_share <= 0 or options.validation_share + options.test_share >= 1:
        raise DataError("validation_share and test_share must be above 0 and leave something for training.")
    prepared = Path(source)
    if prepared.is_dir() and (prepared / "labels.json").is_file():
        return _copy(prepared, out)
    rows, columns = read_source(str(source), options)
    report = PrepareReport(rows=len(rows))
    tickets = _tickets(rows, columns, report)
    counts = Counter(ticket.label for ticket in tickets)
    if not tickets or max(counts.values()) < 2:
        raise DataError(f"{source} has no label with two tickets: name the column to route by with label=.")
    splits = _split(tickets, options)
    if not all(splits.values()):
        raise DataError(f"{source} has too few tickets ({len(tickets)}) for three splits: add some.")
    labels = sorted(counts)
    report.labels = dict(counts.most_common())
    report.languages = dict(Counter(ticket.language for ticket in tickets).most_common())
    report.splits = {split: len(splits[split]) for split in SPLITS}
    render, end = _rendering(options, labels)
    with artifacts.new_folder(out) as folder:
        for split in SPLITS:
            lines = (json.dumps(_row(ticket, render, end), ensure_ascii=False) for ticket in splits[split])
            (folder / f"{split}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        stated = [{"label": label, "completion": label + end} for label in labels]
        _write_json(folder / "labels.json", {"column": columns.label, "format": options.format, "labels": stated})
        _write_json(folder / "report.json", asdict(report))
        artifacts.write_manifest(folder, "prepared-tickets", {"source": str(source), "options": asdict(options)})
    return report


def _tickets(rows: list[Row], columns: Columns, report: PrepareReport) -> list[_Ticket]:
    """Cleaned tickets without duplicates; rows that carry no text or no label are counted and dropped."""
    kept: dict[str, list[_Ticket]] = defaultdict(list)
    dropped = Counter[str]()
    for number, row in enumerate(rows, 1):
        subject, body = (clean(row.get(name, "")) if name else "" for name in (columns.subject, columns.body))
        text = "\n".join(part for part in (subject, body) if part)
        label = clean(row.get(columns.label, ""))
        if not text or not label:
            dropped["without text" if not text else "without label"] += 1
            continue
        language = clean(row.get(columns.language, "")) if columns.language else ""
        ticket = _Ticket(str(row.get(columns.id, number)) if columns.id else str(number), text, label, language)
        kept[_key(text)].append(ticket)
    tickets = []
    for group in kept.values():
        dropped["duplicates"] += len(group) - 1
        # the label that most copies have; of equally many, the one that sorts first, so that order does not matter
        label = min(Counter(ticket.label for ticket in group).items(), key=lambda item: (-item[1], item[0]))[0]
        tickets.append(next(ticket for ticket in group if ticket.label == label))
    report.dropped = dict(dropped)
    return tickets


def clean(text: str) -> str:
    """NFC, literal \\n as a line break, no control characters, single spaces, no empty lines."""
    text = unicodedata.normalize("NFC", text).replace("\\r", "").replace("\\n", "\n").replace("\r", "\n")
    text = "".join(c for c in text if c == "\n" or unicodedata.category(c)[0] != "C")
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def _key(text: str) -> str:
    """What two copies of one ticket have in common: its letters and digits, whatever their case."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip() or text


def _split(tickets: Iterable[_Ticket], options: PrepareOptions) -> dict[str, list[_Ticket]]:
    """Cut every label × language stratum at the wanted shares, in the order of a hash of the text."""
    strata: dict[tuple[str, str], list[tuple[str, _Ticket]]] = defaultdict(list)
    for ticket in tickets:
        digest = hashlib.sha256(f"{options.seed}:{_key(ticket.text)}".encode()).hexdigest()
        strata[ticket.label, ticket.language].append((digest, ticket))
    splits: dict[str, list[tuple[str, _Ticket]]] = {split: [] for split in SPLITS}
    for stratum in strata.values():
        stratum.sort(key=lambda item: (item[0], item[1].text))
        test = math.floor(len(stratum) * options.test_share + 0.5)
        validation = math.floor(len(stratum) * options.validation_share + 0.5)
        splits["test"] += stratum[:test]
        splits["validation"] += stratum[test : test + validation]
        splits["training"] += stratum[test + validation :]
    return {
        split: [ticket for _, ticket in sorted(found, key=lambda i: (i[0], i[1].text))]
        for split, found in splits.items()
    }


def _rendering(options: PrepareOptions, labels: list[str]) -> tuple[Callable[[str], str], str]:
    """A function from ticket text to prompt, and what ends an answer."""
    instruction = options.instruction.replace("{labels}", ", ".join(labels))
    if options.format == "completion":
        return lambda text: f"{instruction}\n\n{harmony.escape_control_tokens(text)}\n\nQueue: ", harmony.RETURN
    render = harmony.renderer(options.tokenizer)
    if options.max_length is None:
        return lambda text: harmony.prompt(render, instruction, text), harmony.RETURN
    if options.tokenizer is None:
        raise DataError("max_length counts tokens: name a tokenizer as well.")
    tokenizer, limit = harmony.load_tokenizer(options.tokenizer), options.max_length
    longest = max(len(tokenizer.encode(label, add_special_tokens=False)) for label in labels) + 1

    def cut(text: str) -> str:
        words = text.split(" ")
        while True:
            prompt = harmony.prompt(render, instruction, " ".join(words))
            excess = len(tokenizer.encode(prompt, add_special_tokens=False)) + longest - limit
            if excess <= 0 or len(words) < 2:
                return prompt
            drop = min(len(words) - 1, max(1, excess // 3))
            middle = len(words) // 2
            words = words[: middle - drop // 2] + words[middle - drop // 2 + drop :]

    return cut, harmony.RETURN


def _row(ticket: _Ticket, render: Callable[[str], str], end: str) -> dict[str, str]:
    return {
        "input": render(ticket.text),
        "output": harmony.escape_control_tokens(ticket.label) + end,
        "id": ticket.id,
        "label": ticket.label,
        "language": ticket.language,
        "ticket": ticket.text,
    }


def _copy(source: Path, out: Path) -> PrepareReport:
    """Take over a folder that was prepared before."""
    missing = [
        name
        for name in (*(f"{s}.jsonl" for s in SPLITS), "labels.json", "report.json")
        if not (source / name).is_file()
    ]
    if missing:
        raise DataError(f"{source} lacks {missing[0]}: prepare it again.")
    if source.resolve() != out.resolve():
        with artifacts.new_folder(out) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            artifacts.write_manifest(folder, "prepared-tickets", {"copied": str(source.resolve())})
    return PrepareReport(**json.loads((out / "report.json").read_text(encoding="utf-8")))


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
