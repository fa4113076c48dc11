"""Route the rows of a table through an endpoint, in their order; an interrupted routing goes on where it stopped."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from common import artifacts
from common.errors import ConfigurationError, LaunchError
from common.progress import Done, Progress, quiet
from data_prep.cleaning import Cleaner
from data_prep.columns import find_text
from data_prep.harmony import Prompt, chat_instruction, escape_control_tokens
from data_prep.prepared import Routing
from data_prep.sources import Row, Source, file_of, open_source
from serving.endpoint import Endpoint, NoAnswerError, NoLabelError, RefusedError
from serving.routed_table import ensure_ours, escape_formula, write_table

ADDED = ("routed_to", "probability", "problem")
"""Columns of the output after the source's.

The probability is that of the answer's tokens as the server says, which vLLM gives among those that the constraint
allows; exact, it is the share of the label among all labels, which is evaluate's confidence.
"""
GIVE_UP = 8
"""Rows one after the other without an answer, after which the server is taken to be broken."""
SAMPLE = "The printer on the second floor is out of order."
"""A ticket that is asked before the table's: whether the server takes such requests, and which model answers."""
CLOSE = 0.1
"""Mean difference of the log-probabilities of two models that may be one: bf16 logits near 20 are 0.125 apart."""


@dataclass
class Routed:
    """Result of a routing.

    Attributes:
        rows, resumed, damaged: written, written before this call, and unreadable in the source.
        labelled: rows of this call with a label.
        problems: rows of this call that the server refused or did not answer with a label, or that have no text.
        example: one of the problems.
        constraint: the way in which the server was told the labels, None where it obeys none.
        restarted: what differed from an interrupted routing whose rows were given up; empty for none.
    """

    model: str
    constraint: str | None
    rows: int = 0
    resumed: int = 0
    damaged: int = 0
    labelled: int = 0
    problems: int = 0
    example: str = ""
    restarted: str = ""

    def count(self, answered: _Answered) -> None:
        """Add a row that was written."""
        self.rows += 1
        self.labelled += bool(answered.label)
        self.problems += bool(answered.problem)
        self.example = self.example or answered.problem


def route(
    file: Path,
    out: Path,
    routing: Routing,
    endpoint: Endpoint,
    *,
    subject: str | None = None,
    body: str | None = None,
    exact: bool = False,
    chat: bool = False,
    escape: bool = True,
    progress: Progress = quiet,
) -> Routed:
    """Write the table with a label for each row, as CSV.

    Args:
        subject, body: columns of the text; by default those with a usual name.
        exact: the label whose whole answer is likeliest, by the scores of all, instead of the model's greedy answer.
        chat: ask the chat API, whose server renders the prompt.
        escape: cells that a spreadsheet would run are written with an apostrophe before them.
        progress: receives the rows done and all rows.
    Raises:
        DataError: the table cannot be read or has no text, or `out` is somebody else's. LaunchError: the server cannot
            be reached or refuses; what was routed until then is kept, and the same call goes on from there.
    """
    ensure_ours(out)
    source = open_source(file)
    columns = find_text(source.columns, source.name, subject, body)
    ask = _Asker(endpoint, routing, source.columns, columns, exact, chat)
    inputs = {
        "file": artifacts.hash_file(file_of(file)),
        "table": "" if file_of(file) == file else file.name,  # in an archive
        "columns": columns,
        "labels": routing.completions,
        "prompt": ask.prompt_parts,
        "skip": routing.skip,
        "exact": exact,
        "chat": chat,
        "escape": escape,
        "url": endpoint.url,
        **ask.identity(),
    }
    total = sum(isinstance(row, Row) for row in source.rows(source.columns))
    routed = Routed(endpoint.model, inputs["constraint"])
    shown = escape_formula if escape else str

    def append(answered: list[_Answered]) -> None:
        """Write the rows, and forget them."""
        for each in answered:
            table.append([shown(cell) for cell in each.cells])
            routed.count(each)
        answered.clear()

    heading = [shown(name) for name in _heading(source.columns)]
    with write_table(out, heading, inputs, _difference) as table:
        routed.rows = routed.resumed = table.rows
        routed.restarted = table.restarted
        started, unanswered = time.perf_counter(), []
        try:
            for answered in endpoint.at_once(ask, islice(_readable(source, routed), table.rows, None)):
                unanswered.append(answered)
                if answered.unanswered:
                    if len(unanswered) == GIVE_UP:
                        raise LaunchError(f"{GIVE_UP} rows one after the other: {answered.problem}")
                    continue
                append(unanswered)
                rate = (routed.rows - routed.resumed) / (time.perf_counter() - started)
                progress(Done("tickets", routed.rows, total, f"{rate:.1f} a second"))
            append(unanswered)
        except LaunchError as error:
            if not table.rows:
                raise
            kept = f"{table.rows:,} rows are kept beside {out}; the same command goes on from there."
            raise LaunchError(f"{error} {kept}") from error
    return routed


@dataclass(frozen=True)
class _Answered:
    """A row of the output; `unanswered` where the server gave nothing that is an answer."""

    row: list[str]
    label: str = ""
    probability: str = ""
    problem: str = ""
    unanswered: bool = False

    @property
    def cells(self) -> list[str]:
        return [*self.row, self.label, self.probability, self.problem]


@dataclass
class _Asker:
    """Asks for one row's label."""

    endpoint: Endpoint
    routing: Routing
    names: Sequence[str]
    columns: tuple[str | None, str | None]
    exact: bool
    chat: bool

    def __post_init__(self) -> None:
        if self.exact and self.chat:
            raise ConfigurationError("--exact scores tokens, which a chat API does not: leave out --chat.")
        self._answers = self.routing.answers
        self._prompt = Prompt(*self.routing.around)
        self._instruction = chat_instruction(self._prompt) if self.chat else ""
        self._cleaner = Cleaner(self.routing.skip)
        self._places = [self.names.index(name) for name in self.columns if name is not None]

    @property
    def prompt_parts(self) -> list[str]:
        """What stands before and after a ticket, and how an answer ends."""
        return [self._prompt.before, self._prompt.after, self.routing.end]

    def identity(self) -> dict[str, Any]:
        """Which model answers and how it is told the labels, by a ticket that is no row of the table.

        Raises:
            LaunchError: the server refuses such requests: with its words.
        """
        served = asdict(self.endpoint.served)
        prompt = self._asked(SAMPLE)
        if self.exact:
            self._completions = [self.endpoint.tokenize(answer) for answer in self.routing.completions.values()]
            self._score(SAMPLE)
            constraint = None
        else:
            constraint = self.endpoint.constraint(prompt)
            try:
                self.endpoint.choose(prompt, list(self._answers))
            except NoLabelError:
                pass  # for a row to say
        return {"constraint": constraint, "model": served, "first_tokens": self.endpoint.fingerprint(prompt)}

    def __call__(self, row: list[str]) -> _Answered:
        text = "\n".join(filter(None, self._cleaner.clean(*(row[place] for place in self._places))))
        if not text:
            return _Answered(row, problem="no text")
        try:
            label, log_probability, doubt = self._score(text) if self.exact else self._choose(text)
        except RefusedError as refused:
            if not refused.of_request:
                raise
            return _Answered(row, problem=str(refused))
        except NoLabelError as error:
            return _Answered(row, problem=str(error))
        except NoAnswerError as error:
            return _Answered(row, problem=str(error), unanswered=True)
        probability = "" if log_probability is None else f"{math.exp(log_probability):.4f}"
        return _Answered(row, label, probability, doubt)

    def _choose(self, text: str) -> tuple[str, float | None, str]:
        choice = self.endpoint.choose(self._asked(text), list(self._answers))
        return self._answers[choice.label], choice.log_probability, choice.doubt

    def _asked(self, text: str) -> str | list[dict[str, str]]:
        """The prompt of a ticket, or the messages from which a chat API renders it."""
        if not self.chat:
            return self._prompt.fill(text)
        user = escape_control_tokens(text)
        return [{"role": "developer", "content": self._instruction}, {"role": "user", "content": user}]

    def _score(self, text: str) -> tuple[str, float | None, str]:
        scores, _ = self.endpoint.score(self.endpoint.tokenize(self._prompt.fill(text)), self._completions)
        best = int(np.argmax(scores))
        return self.routing.labels[best], float(scores[best] - np.logaddexp.reduce(scores)), ""


def _heading(columns: Sequence[str]) -> list[str]:
    """The source's columns and ours, under a name of their own where the source has one of that name."""
    heading = list(columns)
    for name in ADDED:
        free = (name if number == 1 else f"{name}_{number}" for number in range(1, len(columns) + 2))
        heading.append(next(name for name in free if name not in columns))
    return heading


def _difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What of the inputs of an interrupted routing is another now, None where its rows may stay."""
    now = json.loads(json.dumps(now))
    for name in now:
        if name not in ("url", "first_tokens") and earlier.get(name) != now[name]:  # a server may move
            return name
    before, after = earlier.get("first_tokens", []), now["first_tokens"]
    same = len(before) == len(after) and (not after or np.abs(np.subtract(before, after)).mean() <= CLOSE)
    return None if same else "model"


def _readable(source: Source, routed: Routed) -> Iterator[list[str]]:
    for row in source.rows(source.columns):
        if isinstance(row, Row):
            yield row.values
        else:
            routed.damaged += 1
