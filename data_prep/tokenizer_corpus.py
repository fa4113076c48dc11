"""What a rehearsal's tokenizer learns its words from: the run's own tickets, and the prompt around them.

A tokenizer of other texts takes these apart into letters: their words then are longer, and a small model has to learn
them first.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from itertools import islice
from pathlib import Path

from data_prep.harmony import SPECIAL_TOKENS, renderer, routing_prompt
from data_prep.intake import Spool, take_in
from data_prep.options import DEFAULT_INSTRUCTION, PrepareOptions
from data_prep.preparation import sources_of
from data_prep.prepared import is_prepared
from data_prep.rendering import fill_instruction
from data_prep.sample import SHARES, sample_tickets

MOST = 20_000  # tickets; more of them hardly change which words are frequent
FRAME_SHARE = 20  # one prompt for so many tickets: often enough that its words become tokens of their own


def tokenizer_texts(source: str, options: PrepareOptions) -> list[str]:
    """Texts of the tickets that `prepare` would read, cleaned as it cleans them, without control tokens.

    Raises:
        DataError: as `prepare` does.
    """
    if source == "sample":
        return sample_texts()
    if is_prepared(Path(source)):
        return list(_of_prepared(Path(source)))
    with tempfile.TemporaryDirectory() as folder, closing(Spool(Path(folder) / "spool")) as spool:
        intake = take_in(sources_of(source, options), spool, options)
        tickets = [spool[number] for number in range(min(len(spool), MOST))]
    texts = [ticket.conversation.words if ticket.conversation else ticket.text for ticket in tickets]
    column, labels = next(iter(intake.columns.values())).label, sorted(intake.label_names)
    # conversations have instructions of their own, in the same frame
    instruction = fill_instruction(options.instruction, column, labels) if column else ""
    return _in_frames(texts, instruction, labels)


@cache
def sample_texts() -> list[str]:
    """Those of the sample's tickets."""
    tickets = [f"{row['subject']}\n{row['body']}".replace("\\n", "\n") for row in sample_tickets()]
    return _in_frames(tickets, fill_instruction(DEFAULT_INSTRUCTION, "queue", sorted(SHARES)), list(SHARES))


def _in_frames(tickets: list[str], instruction: str, labels: list[str]) -> list[str]:
    """The tickets, and the words of the prompt around them and of its answers."""
    prompt = routing_prompt(renderer(), instruction)
    return tickets + [*_plain(prompt.before + prompt.after), *labels] * max(1, len(tickets) // FRAME_SHARE)


def _of_prepared(folder: Path) -> Iterator[str]:
    with (folder / "training.jsonl").open(encoding="utf-8") as rows:
        for line in islice(rows, MOST):
            row = json.loads(line)
            yield from _plain(row["input"] + row["output"])


def _plain(text: str) -> list[str]:
    """The pieces between control tokens."""
    return [piece for piece in re.split("|".join(map(re.escape, SPECIAL_TOKENS)), text) if piece]
