"""Rows → cleaned tickets on disk, with what de-duplication and splitting need of them in memory.

A million tickets are some gigabytes of text; here they go to a spool file, and only numbers stay: 8 bytes of key, the
place in the file, and the codes of label and language.
"""

from __future__ import annotations

import ast
import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.progress import Progress, quiet, reported
from data_prep.accounting import Records, account, remarks_on
from data_prep.cleaning import EMPTY_ROWS, LABEL_SPELLING, LANGUAGE_CODES, WRITTEN_BREAKS, Cleaner, cleaned_name
from data_prep.columns import Columns, find_columns
from data_prep.conversations import Conversation, LeftOutError, calls_of, read_conversation
from data_prep.label_codes import LabelCodes, language_code, one_spelling
from data_prep.normalizing import normalized
from data_prep.options import PrepareOptions
from data_prep.sources import Damaged, Row, Source
from data_prep.written_breaks import are_written

KEPT_EXAMPLES, EXAMPLE_LENGTH = 6, 600
KEPT_DAMAGES = 1000
LONGEST_LABEL_LIST = 10_000


@dataclass(frozen=True)
class Ticket:
    """A ticket in the spool, or a conversation; `words` are `normalized`."""

    id: str
    text: str
    words: str
    conversation: Conversation | None = None


@dataclass
class Intake:
    """The tickets of all sources, and what happened to their rows.

    Attributes:
        keys: uint64 (N,), equal for tickets with the same words.
        contents: uint64 (N,), hash of everything that the spool keeps of a ticket; orders equal keys.
        labels, languages: int32 (N,), index into `label_names`, `language_names`.
        remarks: sentences on how the sources were understood, and what is odd about them.
        accounts: source → what another reader makes of it (data_prep.accounting).
        meant_backslashes: sources with real line breaks, where a written one is text.
        several_labels: rows with more than one label, of which the first was taken.
        undeclared: conversations that call tools and declare none.
    """

    spool: Spool
    cleaner: Cleaner
    rows: int = 0
    recoded: int = 0
    columns: dict[str, Columns] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    accounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    meant_backslashes: list[str] = field(default_factory=list)
    several_labels: int = 0
    undeclared: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)
    without_subject: int = 0
    examples: list[tuple[int, str, str]] = field(default_factory=list)
    label_names: list[str] = field(default_factory=list)
    language_names: list[str] = field(default_factory=list)
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    contents: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    languages: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))


class Spool:
    """Tickets in a file, one JSON line each, read back by number."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._starts = array("q")
        self._end = 0

    def append(self, ticket: Ticket) -> bytes:
        """Add a ticket; returns its line."""
        said = vars(ticket.conversation) if ticket.conversation else []
        line = json.dumps([ticket.id, ticket.text, said, ticket.words], ensure_ascii=False).encode() + b"\n"
        self._starts.append(self._end)
        self._end += len(line)
        self._file.write(line)
        return line

    def __getitem__(self, number: int) -> Ticket:
        self._file.seek(self._starts[number])
        identity, text, said, words = json.loads(self._file.readline())
        return Ticket(identity, text, words, Conversation(**said) if said else None)

    def __len__(self) -> int:
        return len(self._starts)

    def close(self) -> None:
        self._file.close()


def hash64(data: bytes) -> int:
    """The first 8 bytes of BLAKE2b as a number."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def take_in(sources: Iterable[Source], spool: Spool, options: PrepareOptions, progress: Progress = quiet) -> Intake:
    """Read, clean and keep every row of the sources.

    Raises:
        DataError: a source lacks a column or has no row; with `strict`, a row is damaged.
    """
    intake = Intake(spool, Cleaner(options.skip))
    label_codes = LabelCodes(str if LABEL_SPELLING in options.skip else one_spelling)
    language_codes = LabelCodes(str if LANGUAGE_CODES in options.skip else language_code, by_key=True)
    keys, contents, labels, languages = array("Q"), array("Q"), array("i"), array("i")
    for source in sources:
        columns = find_columns(source.columns, source.name, options)
        intake.columns[source.name] = columns
        intake.remarks += source.remarks
        before = intake.rows
        _set_written_breaks(source, columns, intake, options)
        rows = _readable(source, columns, intake, options.strict)
        for line, row in reported(rows, f"reading {Path(source.name).name}", None, progress):
            place = f"{source.name}, line {line}"
            taken = _chat(row, columns, intake) if columns.messages else _ticket(row, columns, intake, options, place)
            if taken is None:
                continue
            ticket, key, label, language = taken
            keys.append(key)
            contents.append(hash64(spool.append(ticket)))
            labels.append(label_codes.of(label, place))
            languages.append(language_codes.of(language))
        intake.recoded += source.recoded
        if intake.rows == before:
            raise DataError(f"{source.name} holds no tickets, only a heading: export it again.")
    intake.keys, intake.contents = np.array(keys, np.uint64), np.array(contents, np.uint64)
    intake.remarks += label_codes.remarks(np.array(labels, np.int32))
    if intake.undeclared:
        intake.remarks.append(
            f"{intake.undeclared:,} conversations call tools but no column `tools` declares any, as a server would."
        )
    intake.label_names, intake.labels, relabelled = label_codes.resolved(np.array(labels, np.int32))
    if len(intake.label_names) == 1 and intake.label_names[0]:  # conversations have none
        intake.remarks.append(f"every ticket has the label {intake.label_names[0]!r}: there is nothing to learn.")
    intake.language_names, intake.languages, respelt = language_codes.resolved(np.array(languages, np.int32))
    for rule, count in ((LABEL_SPELLING, relabelled), (LANGUAGE_CODES, respelt)):
        if rule not in options.skip:
            intake.cleaner.changed[rule] = count
    return intake


def _set_written_breaks(source: Source, columns: Columns, intake: Intake, options: PrepareOptions) -> None:
    """Leave the rule out for a source whose texts have real line breaks."""
    texts = [name for name in (columns.subject, columns.body) if name]
    skip = list(options.skip)
    if texts and WRITTEN_BREAKS not in skip:
        values = (value for row in source.rows(texts) if isinstance(row, Row) for value in row.values)
        if not are_written(values):
            skip.append(WRITTEN_BREAKS)
            intake.meant_backslashes.append(source.name)
    intake.cleaner = Cleaner(skip, intake.cleaner.changed)


def _readable(source: Source, columns: Columns, intake: Intake, strict: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows with their lines; the damaged ones are counted, and at the end all are compared with another reader's."""
    names, records, damaged = columns.names, Records(), 0
    for row in source.rows(names):
        intake.rows += 1
        if isinstance(row, Row):
            records.add(row.line, row.values)
            yield row.line, dict(zip(names, row.values, strict=True))
            continue
        damaged += 1
        lines = f"line {row.line}" if row.last <= row.line else f"lines {row.line} to {row.last}"
        place = f"{source.name}, {lines}: {row.reason}"
        if strict:
            raise DataError(f"{place}: mend it, or leave out --strict to drop damaged rows.")
        _drop_damaged(row, place, intake)
    intake.accounts[source.name] = account(source, names, records, damaged)
    remarks = remarks_on(source.name, intake.accounts[source.name])
    if remarks and strict:
        raise DataError(f"{remarks[0]} Leave out --strict to take them.")
    intake.remarks += remarks


def _drop_damaged(row: Damaged, place: str, intake: Intake) -> None:
    intake.dropped["damaged"] += 1
    if len(intake.damaged) < KEPT_DAMAGES:
        intake.damaged.append(place)


def _ticket(
    row: dict[str, str], columns: Columns, intake: Intake, options: PrepareOptions, place: str
) -> tuple[Ticket, int, str, str] | None:
    raw_subject, raw_body = (row[name] if name else "" for name in (columns.subject, columns.body))
    subject, body = intake.cleaner.clean(raw_subject, raw_body)
    label = cleaned_name(_label(row, columns, intake, options, place))
    if not (subject or body or EMPTY_ROWS in options.skip) or not label:
        intake.dropped["without text" if label else "without label"] += 1
        return None
    intake.without_subject += columns.subject is not None and not subject
    text = "\n".join(part for part in (subject, body) if part)
    raw = "\n".join(part for part in (raw_subject, raw_body) if part)
    words = normalized(text)
    key = hash64(words.encode())
    if raw.strip() != text and len(raw) < EXAMPLE_LENGTH:
        intake.examples = sorted({*intake.examples, (key, raw, text)})[:KEPT_EXAMPLES]  # whatever the rows' order
    identity = cleaned_name(row[columns.id]) if columns.id else ""
    language = row[columns.language] if columns.language else ""
    return Ticket(identity or f"{key:016x}", text, words), key, label, language


def _label(row: dict[str, str], columns: Columns, intake: Intake, options: PrepareOptions, place: str) -> str:
    """The label of a row; of several the first.

    Raises:
        DataError: there are several, and `multi_label` does not say what to do.
    """
    value = row[columns.label] if columns.label else ""
    if not value.startswith("["):
        return value
    labels = _listed(value)
    if labels is None:
        return value
    if len(labels) > 1:
        if options.multi_label != "first":
            shown = ", ".join(labels[:4])
            raise DataError(
                f"{place}: the label column {columns.label!r} holds several labels ({shown}): take the first with "
                "--multi-label first, or name another column with --label."
            )
        intake.several_labels += 1
    return labels[0] if labels else ""


def _listed(value: str) -> list[str] | None:
    """The members of a list that JSON or Python wrote, without empty ones; None where it is a name in brackets."""
    if len(value) > LONGEST_LABEL_LIST:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            items = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(items, list):
            return [str(item) for item in items if item is not None and str(item).strip()]
    return None


def _chat(row: dict[str, str], columns: Columns, intake: Intake) -> tuple[Ticket, int, str, str] | None:
    """A conversation; its key is that of all its turns."""
    try:
        said = read_conversation(row[columns.messages or ""], row[columns.tools] if columns.tools else "")
    except LeftOutError as reason:
        intake.dropped[str(reason)] += 1
        return None
    clean_turns(said, intake.cleaner)
    intake.undeclared += not said.tools and any(calls_of(message) for message in said.messages)
    text = "\n".join(message["content"] for message in said.messages if message["role"] == "user")
    words = normalized(said.words)
    key = hash64(words.encode())
    identity = cleaned_name(row[columns.id]) if columns.id else ""
    language = row[columns.language] if columns.language else ""
    return Ticket(identity or f"{key:016x}", text, words, said), key, "", language


def clean_turns(said: Conversation, cleaner: Cleaner) -> None:
    """Clean what is said and thought; calls and schemas are code."""
    places = [(message, name) for message in said.messages for name in ("content", "thinking") if name in message]
    cleaned = cleaner.clean_chat(*(message[name] for message, name in places))
    for (message, name), text in zip(places, cleaned, strict=True):
        message[name] = text
