"""What can be chosen when tickets are prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `data_prep.prepare`; a column that is None is found by its usual names."""

    label: str = "queue"
    """Column that holds what tickets are routed to."""
    subject: str | None = None
    body: str | None = None
    language: str | None = None
    id: str | None = None
    format: Literal["harmony", "completion"] = "harmony"
    instruction: str = "Route the ticket to one of these queues: {labels}."
    """`{labels}` stands for the list of labels."""
    validation_share: float = 0.1
    test_share: float = 0.1
    seed: int = 1234
    max_length: int | None = None
    """Longest prompt and answer in tokens (needs `tokenizer`); of a longer ticket the middle is cut."""
    tokenizer: str | None = None
    """Folder whose chat template renders the prompt; without one, this package's own harmony template."""
