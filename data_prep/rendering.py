"""Tickets → the rows that NeMo's fine-tuning dataset reads, cut to the allowed number of tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import DataError
from data_prep import harmony
from data_prep.intake import Ticket
from data_prep.options import PrepareOptions

GAP = " […] "
_PLACEHOLDER = re.compile(r"<[A-Za-z]\w*>")  # as anonymized tickets have them: <name>, <tel_num>


@dataclass(frozen=True)
class Rendered:
    """A row's prompt and answer, the tokens of both where they are counted, and whether text was cut out."""

    input: str
    output: str
    tokens: int | None
    cut: bool = False


class Renderer:
    """Renders tickets as the options say.

    Attributes:
        prompt: what stands around a ticket.
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
        instruction = fill_instruction(options.instruction.strip(), self._escaped(column or "label"), names)
        if self._render is not None:
            self.prompt = harmony.routing_prompt(self._render, instruction)
            self.end = harmony.RETURN
        else:
            # no blank at the borders: NeMo's GPTSFTDataset._process_example strips blanks from input and output
            question = self._escaped(column or "label").capitalize()
            self.prompt = harmony.Prompt(f"{instruction}\n\n", f"\n\n{question}:\n")
            self.end = self.tokenizer.eos_token if self.tokenizer is not None else harmony.RETURN
        self.completions = {label: name + self.end for label, name in zip(labels, names, strict=True)}

    def render(self, ticket: Ticket, label: str) -> Rendered | None:
        """A ticket as prompt and answer; None where it is too long and the options say to drop it.

        Raises:
            DataError: the prompt is too long without any ticket in it.
        """
        if ticket.messages:
            return self._chat(ticket)
        text, output = self._escaped(ticket.text), self.completions[label]
        whole = self.prompt.fill(text)
        if self.tokenizer is None:
            return Rendered(whole, output, None)
        answer = self.count(output)
        tokens = self.count(whole) + answer
        if self._limit is None or tokens <= self._limit:
            return Rendered(whole, output, tokens)
        return None if self._options.too_long == "drop" else self._cut(text, output, answer)

    def count(self, text: str) -> int:
        """Tokens of a text, as NeMo counts them: without any that the tokenizer would add."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def _chat(self, ticket: Ticket) -> Rendered | None:
        if self._render is None:
            raise DataError("a chat dataset is rendered as harmony: leave out format=completion.")
        messages = [{name: self._escaped(text) for name, text in turn.items()} for turn in ticket.messages]
        prompt, answer = harmony.chat_turn(self._render, messages)
        tokens = self.count(prompt) + self.count(answer) if self.tokenizer is not None else None
        # a conversation has no middle that could go without changing what is answered
        too_long = self._limit is not None and tokens is not None and tokens > self._limit
        return None if too_long else Rendered(prompt, answer, tokens)

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
                return Rendered(short, output, tokens, cut=True)
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


def row_line(ticket: Ticket, rendered: Rendered, label: str, language: str) -> str:
    """One line of training.jsonl, validation.jsonl or test.jsonl."""
    row = {
        "input": rendered.input,
        "output": rendered.output,
        "id": ticket.id,
        "label": label,
        "language": language,
        "ticket": ticket.text,
    }
    # no line separator but \n may stand in a line: str.splitlines, which readers use, breaks at U+0085 and U+2028 too
    return json.dumps(row, ensure_ascii=False).replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace(
        "\u2029", "\\u2029"
    ) + "\n"  # fmt: skip
