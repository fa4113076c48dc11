"""One line of training.jsonl, validation.jsonl or test.jsonl: how it is written, and what of it carries loss.

`input` and `output` are what NeMo's fine-tuning dataset reads: the prompt without loss, the answer with loss. A row may
hold several turns of a conversation, and a turn may begin with a blank, as a tool call does in harmony. Such a row has
`without_loss` too: the parts of `output`, as [start, end) in characters, that the model is given between its answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from data_prep.turns import Step

WITHOUT_LOSS = "without_loss"


def fields_of(steps: Sequence[Step]) -> dict[str, Any]:
    """`input`, `output` and, where NeMo's own dataset would misread these, `without_loss` of a row of turns."""
    parts = [part for step in steps for part in step][1:]
    ends = list(accumulate(map(len, parts)))
    row: dict[str, Any] = {"input": steps[0][0], "output": "".join(parts)}
    if len(steps) > 1 or any(text != text.strip(" ") for text in row.values()):
        row[WITHOUT_LOSS] = [list(place) for place in zip(ends[:-1:2], ends[1::2], strict=True)]
    return row


def steps_in(row: Mapping[str, Any]) -> list[Step]:
    """The turns of a row: what is given, and the answer."""
    output, places = row["output"], [0, *(place for part in row.get(WITHOUT_LOSS, ()) for place in part)]
    texts = [row["input"], *(output[start:end] for start, end in zip(places, [*places[1:], None], strict=True))]
    return list(zip(texts[::2], texts[1::2], strict=True))


def tokens_and_loss(row: Mapping[str, Any], encode: Callable[[str], list[int]]) -> tuple[list[int], list[bool]]:
    """The tokens of a row, part by part, and which of them the model learns to write."""
    tokens: list[int] = []
    learnt: list[bool] = []
    for step in steps_in(row):
        for part, is_answer in zip(step, (False, True), strict=True):
            ids = encode(part)
            tokens += ids
            learnt += [is_answer] * len(ids)
    return tokens, learnt


def as_line(row: Mapping[str, Any]) -> str:
    """A row as it stands in a file, its line break included."""
    # no line separator but \n may stand in a line: str.splitlines, which readers use, breaks at U+0085 and U+2028 too
    return json.dumps(row, ensure_ascii=False).replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace(
        "\u2029", "\\u2029"
    ) + "\n"  # fmt: skip
