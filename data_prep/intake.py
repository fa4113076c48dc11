"""Rows → cleaned tickets on disk, with what de-duplication and splitting need of them in memory.

A million tickets are some gigabytes of text; here they go to a spool file, and only numbers stay: 8 bytes of key, the
place in the file, and the codes of label and language.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.progress import Progress, quiet, reported
from data_prep.cleaning import EMPTY_ROWS, LABEL_SPELLING, LANGUAGE_CODES, Cleaner, cleaned_name
from data_prep.columns import Columns, find_columns
from data_prep.options import PrepareOptions
from data_prep.sources import Damaged, Row, Source

KEPT_EXAMPLES, EXAMPLE_LENGTH = 6, 600
KEPT_DAMAGES = 1000
_NOT_WORDS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Ticket:
    """A ticket in the spool; `messages` is a conversation, else empty; `words` are `normalized`."""

    id: str
    text: str
    messages: list[dict[str, str]]
    words: str


@dataclass
class Intake:
    """The tickets of all sources, and what happened to their rows.

    Attributes:
        keys: uint64 (N,), equal for tickets with the same words.
        contents: uint64 (N,), hash of everything that the spool keeps of a ticket; orders equal keys.
        labels, languages: int32 (N,), index into `label_names`, `language_names`.
    """

    spool: Spool
    cleaner: Cleaner
    rows: int = 0
    recoded: int = 0
    columns: dict[str, Columns] = field(default_factory=dict)
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
        line = json.dumps([ticket.id, ticket.text, ticket.messages, ticket.words], ensure_ascii=False).encode() + b"\n"
        self._starts.append(self._end)
        self._end += len(line)
        self._file.write(line)
        return line

    def __getitem__(self, number: int) -> Ticket:
        self._file.seek(self._starts[number])
        return Ticket(*json.loads(self._file.readline()))

    def __len__(self) -> int:
        return len(self._starts)

    def close(self) -> None:
        self._file.close()


def normalized(text: str) -> str:
    """The words of a text without case and punctuation, which copies of a ticket have in common."""
    return _NOT_WORDS.sub(" ", text.casefold()).strip() or text


def hash64(data: bytes) -> int:
    """The first 8 bytes of BLAKE2b as a number."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def take_in(sources: Iterable[Source], spool: Spool, options: PrepareOptions, progress: Progress = quiet) -> Intake:
    """Read, clean and keep every row of the sources.

    Raises:
        DataError: a source lacks a column or has no row; with `strict`, a row is damaged.
    """
    intake = Intake(spool, Cleaner(options.skip))
    label_codes = _Codes(_same if LABEL_SPELLING in options.skip else _spelling)
    language_codes = _Codes(_same if LANGUAGE_CODES in options.skip else _language)
    keys, contents, labels, languages = array("Q"), array("Q"), array("i"), array("i")
    for source in sources:
        columns = find_columns(source.columns, source.name, options)
        intake.columns[source.name] = columns
        before = intake.rows
        rows = _readable(source, columns, intake, options.strict)
        for row in reported(rows, f"reading {Path(source.name).name}", None, progress):
            if columns.messages:
                taken = _chat(row, columns, intake)
            else:
                taken = _ticket(row, columns, intake, keep_empty=EMPTY_ROWS in options.skip)
            if taken is None:
                continue
            ticket, key, label, language = taken
            keys.append(key)
            contents.append(hash64(spool.append(ticket)))
            labels.append(label_codes.of(label))
            languages.append(language_codes.of(language))
        intake.recoded += source.recoded
        if intake.rows == before:
            raise DataError(f"{source.name} holds no tickets, only a heading: export it again.")
    intake.keys, intake.contents = np.array(keys, np.uint64), np.array(contents, np.uint64)
    intake.label_names, intake.labels, relabelled = label_codes.resolved(np.array(labels, np.int32))
    intake.language_names, intake.languages, respelt = language_codes.resolved(np.array(languages, np.int32))
    for rule, count in ((LABEL_SPELLING, relabelled), (LANGUAGE_CODES, respelt)):
        if rule not in options.skip:
            intake.cleaner.changed[rule] = count
    return intake


def _readable(source: Source, columns: Columns, intake: Intake, strict: bool) -> Iterator[dict[str, str]]:
    names = columns.names
    for row in source.rows(names):
        intake.rows += 1
        if isinstance(row, Row):
            yield dict(zip(names, row.values, strict=True))
            continue
        lines = f"line {row.line}" if row.last <= row.line else f"lines {row.line} to {row.last}"
        place = f"{source.name}, {lines}: {row.reason}"
        if strict:
            raise DataError(f"{place}; mend it, or leave out --strict to drop damaged rows.")
        _drop_damaged(row, place, intake)


def _drop_damaged(row: Damaged, place: str, intake: Intake) -> None:
    intake.dropped["damaged"] += 1
    if len(intake.damaged) < KEPT_DAMAGES:
        intake.damaged.append(place)


def _ticket(
    row: dict[str, str], columns: Columns, intake: Intake, *, keep_empty: bool
) -> tuple[Ticket, int, str, str] | None:
    raw_subject, raw_body = (row[name] if name else "" for name in (columns.subject, columns.body))
    subject, body = intake.cleaner.clean(raw_subject, raw_body)
    label = cleaned_name(row[columns.label]) if columns.label else ""
    if not (subject or body or keep_empty) or not label:
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
    return Ticket(identity or f"{key:016x}", text, [], words), key, label, language


def _chat(row: dict[str, str], columns: Columns, intake: Intake) -> tuple[Ticket, int, str, str] | None:
    """A conversation; its key is that of all its turns."""
    messages = _messages(row[columns.messages or ""], intake.cleaner)
    if messages is None:
        intake.dropped["without a conversation that ends in an answer"] += 1
        return None
    text = "\n".join(message["content"] for message in messages if message["role"] == "user")
    words = normalized("\n".join(message["content"] for message in messages))
    key = hash64(words.encode())
    identity = cleaned_name(row[columns.id]) if columns.id else ""
    language = row[columns.language] if columns.language else ""
    return Ticket(identity or f"{key:016x}", text, messages, words), key, "", language


def _messages(value: str, cleaner: Cleaner) -> list[dict[str, str]] | None:
    """Turns of system, developer, user and assistant, ending with the assistant; None where it is anything else."""
    try:
        turns: Any = json.loads(value)
        messages = [
            {"role": turn["role"], **{name: _as_text(turn.get(name)) for name in ("content", "thinking")}}
            for turn in turns
        ]
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None
    roles = [message["role"] for message in messages]
    if not roles or roles[-1] != "assistant" or any(
        role not in ("system", "developer", "user", "assistant") or (role in ("system", "developer") and place)
        for place, role in enumerate(roles)
    ):  # fmt: skip
        return None
    for message in messages:
        message["content"], message["thinking"] = cleaner.clean_chat(message["content"], message["thinking"])
    return messages if messages[-1]["content"].strip() and "user" in roles else None


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("a turn's text is no text")
    return value


class _Codes:
    """Numbers for names; names that differ in spelling only become one.

    Of labels that is the spelling seen most; a language's is its code.
    """

    def __init__(self, spelling: Callable[[str], str]) -> None:
        self._spelling = spelling
        self._codes: dict[str, int] = {}

    def of(self, name: str) -> int:
        return self._codes.setdefault(name, len(self._codes))

    def resolved(self, codes: np.ndarray) -> tuple[list[str], np.ndarray, int]:
        """Unified names, sorted, each row's index among them, and how many rows' names changed."""
        counts = np.bincount(codes, minlength=len(self._codes)).tolist()
        best: dict[str, tuple[int, str]] = {}
        for name, code in self._codes.items():
            key = self._spelling(name)
            best[key] = min(best.get(key, (1, "")), (-counts[code], name))
        chosen = {key: key if self._spelling is _language else name for key, (_, name) in best.items()}
        unified = [chosen[self._spelling(name)] for name in self._codes]
        names = sorted(set(unified))
        place = {name: index for index, name in enumerate(names)}
        changed = sum(counts[code] for name, code in self._codes.items() if unified[code] != name)
        return names, np.array([place[name] for name in unified], np.int32)[codes], changed


def _same(name: str) -> str:
    return name


def _spelling(label: str) -> str:
    """Labels that differ in case, `_`, `-`, `&` or blanks only are one; C++ and C# stay two."""
    return " ".join(re.sub(r"[_\-]", " ", label.casefold().replace("&", " and ")).split())


def _language(language: str) -> str:
    """The language code behind an export's spelling: `de` for DE, de-DE and de_AT."""
    return re.split(r"[-_]", cleaned_name(language).casefold(), maxsplit=1)[0].strip()
