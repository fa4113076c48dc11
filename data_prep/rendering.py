"""Tickets → the rows that NeMo's fine-tuning dataset reads, cut to the allowed number of tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from common.errors import DataError
from data_prep import harmony
from data_prep.chat_template import ensure_shows_calls
from data_prep.conversations import Conversation, LeftOutError, calls_of
from data_prep.intake import Ticket
from data_prep.options import PrepareOptions
from data_prep.row_format import fields_of
from data_prep.turns import Step, rows_of

GAP = " […] "
_PLACEHOLDER = re.compile(r"<[A-Za-z]\w*>")  # as anonymized tickets have them: <name>, <tel_num>


@dataclass(frozen=True)
class Rendered:
    """A row's prompt and answers, their tokens where they are counted, and whether something was cut out."""

    steps: list[Step]
    tokens: int | None
    cut: bool = False

    @property
    def input(self) -> str:
        """The prompt."""
        return self.steps[0][0]

    @property
    def output(self) -> str:
        """The rest of the row."""
        return self.fields["output"]

    @property
    def fields(self) -> dict[str, Any]:
        """What NeMo's fine-tuning dataset reads of it."""
        return fields_of(self.steps)


class Renderer:
    """Renders tickets as the options say.

    Attributes:
        completions: each label's answer, up to and with `end`.
    Raises:
        DataError: a label is a placeholder or a control token, or the tokenizer cannot be used.
    """

    def __init__(self, options: PrepareOptions, column: str | None, labels: Sequence[str]) -> None:
        self.tokenizer: Any = harmony.load_tokenizer(options.tokenizer) if options.tokenizer else None
        self._options = options
        self._limit = min(filter(None, (options.max_length, options.pack)), default=None)
        self._render = harmony.renderer(self.tokenizer, options.rendering) if options.format == "harmony" else None
        # of other tokenizers; gpt-oss's own are covered by escape_control_tokens
        self._special = [token for token in self._special_tokens() if len(token) > 1 and not token.startswith("<|")]
        for label in labels:
            self._ensure_plain(label)
        names = [self._escaped(label) for label in labels]
        self._question = self._escaped(column or "label")
        self._instruction = fill_instruction(options.instruction.strip(), self._question, names)
        plain = self.tokenizer if self._render is None else None
        self.end = harmony.RETURN if plain is None else plain.eos_token
        self.completions = {label: name + self.end for label, name in zip(labels, names, strict=True)}

    @cached_property
    def prompt(self) -> harmony.Prompt:
        """What stands around a ticket; nothing asks for it where conversations are rendered."""
        if self._render is not None:
            return harmony.routing_prompt(self._render, self._instruction)
        # no blank at the borders: NeMo's GPTSFTDataset._process_example strips blanks from input and output
        return harmony.Prompt(f"{self._instruction}\n\n", f"\n\n{self._question.capitalize()}:\n")

    @cached_property
    def _shows_several_calls(self) -> bool:
        assert self._render is not None
        return ensure_shows_calls(self._render)

    def rows(self, ticket: Ticket, label: str) -> list[Rendered]:
        """The rows of a ticket, which is one, or of a conversation.

        Raises:
            LeftOutError: it is too long, or the template cannot render it.
            DataError: the prompt is too long without any ticket in it.
        """
        rows = self._exchanges(ticket.conversation) if ticket.conversation else [self._routing(ticket.text, label)]
        kept = [row for row in rows if row is not None]
        if not kept:
            raise LeftOutError("longer than max_length")
        return kept

    def _routing(self, ticket: str, label: str) -> Rendered | None:
        text, output = self._escaped(ticket), self.completions[label]
        whole = self.prompt.fill(text)
        if self.tokenizer is None:
            return Rendered([(whole, output)], None)
        answer = self.count(output)
        tokens = self.count(whole) + answer
        if self._limit is None or tokens <= self._limit:
            return Rendered([(whole, output)], tokens)
        return None if self._options.too_long == "drop" else self._cut(text, output, answer)

    def count(self, text: str) -> int:
        """Tokens of a text, as NeMo counts them: without any that the tokenizer would add."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def _exchanges(self, conversation: Conversation) -> list[Rendered]:
        """The rows of a conversation that fit; those that lost turns are marked as cut."""
        if self._render is None:
            raise DataError("a chat dataset is rendered as harmony: leave out format=completion.")
        calls = max(len(calls_of(message)) for message in conversation.messages)
        if (conversation.tools or calls) and not self._shows_several_calls and calls > 1:
            raise LeftOutError("with several calls in one turn, which the chat template does not show")
        rows = rows_of(self._render, conversation.mapped(self._escaped), self._options.loss)
        fitting = [self._fitting(steps) for steps in rows]
        lost = sum(map(len, rows)) > sum(len(row.steps) for row in fitting)
        return [Rendered(row.steps, row.tokens, lost) for row in fitting if row.steps]

    def _fitting(self, steps: list[Step]) -> Rendered:
        """The first turns of a row, as many as fit: a conversation has no middle that could go."""
        if self.tokenizer is None:
            return Rendered(steps, None)
        tokens = 0
        for place, step in enumerate(steps):
            longer = tokens + sum(map(self.count, step))
            if self._limit is not None and longer > self._limit:
                return Rendered(steps[:place], tokens)
            tokens = longer
        return Rendered(steps, tokens)

    def _cut(self, text: str, output: str, answer: int) -> Rendered:
        """Leave out the middle or the end of the ticket, so much that the rest fits."""
        limit = self._limit or 0
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        keep = min(len(offsets), limit - answer - self.count(self.prompt.fill(GAP)))
        while keep > 0:
            head, tail = (keep, 0) if self._options.too_long == "head" else ((keep + 1) // 2, keep // 2)
            ending = text[offsets[-tail][0] :] if tail else ""
            short = self.prompt.fill(text[: offsets[head - 1][1]].rstrip() + GAP + ending.lstrip())
            tokens = self.count(short) + answer
            if tokens <= limit:
                return Rendered([(short, output)], tokens, cut=True)
            keep -= max(1, tokens - limit)
        raise DataError(
            f"{limit} tokens do not hold the instruction and the label alone: raise max_length, or list no labels."
        )

    def _ensure_plain(self, label: str) -> None:
        """Refuse a label that something takes for what it is not: as an answer it would not come back as it is.

        Raises:
            DataError: it is a placeholder, or a control token.
        """
        name = label.strip()
        if name in {*harmony.SPECIAL_TOKENS, *self._special_tokens()}:
            kind = "a control token of the tokenizer"
        elif name in ("{labels}", "{column}", harmony.TICKET_MARK) or _PLACEHOLDER.fullmatch(name):
            kind = "a placeholder"
        else:
            return
        raise DataError(f"the label {label!r} is {kind}: rename it in the source.")

    def _escaped(self, text: str) -> str:
        text = harmony.escape_control_tokens(text)
        for token in self._special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _special_tokens(self) -> list[str]:
        if self.tokenizer is None:
            return []
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        return sorted({*self.tokenizer.all_special_tokens, *added})


def fill_instruction(instruction: str, column: str, labels: Sequence[str]) -> str:
    """The instruction with the name of the label's column and the labels in their places."""
    # the labels last: they are the user's data and may hold anything
    return instruction.replace("{column}", column.replace("_", " ").strip()).replace("{labels}", ", ".join(labels))
