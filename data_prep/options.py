"""Options of the preparation of tickets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.errors import ConfigurationError
from data_prep.harmony import Rendering
from data_prep.turns import Loss

DEFAULT_INSTRUCTION = "Route the ticket. Answer with its {column}, one of: {labels}."


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `data_prep.preparation.prepare`; a column that is None is found by its usual names.

    Raises:
        ConfigurationError: a value is impossible, or needs another option that is missing.
    """

    label: str = "queue"
    """Column that holds what tickets are routed to."""
    subject: str | None = None
    body: str | None = None
    language: str | None = None
    id: str | None = None
    file: str | None = None
    """Which file of the Kaggle dataset, or of a folder; None: the largest of Kaggle, all of a folder."""
    encoding: str | None = None
    """Of a text file whose bytes do not tell it."""
    multi_label: Literal["ask", "first"] = "ask"
    """Of a row with several labels the first is taken, or it is an error."""
    skip: tuple[str, ...] = ()
    """Cleaning rules to leave out, by their names in `data_prep.cleaning`."""
    strict: bool = False
    """A damaged row is an error instead of a line in the report."""
    near_duplicates: float = 0.8
    """Share of common three-word shingles from which two tickets are one group; 1 keeps to exact copies."""
    split: str = "0.8/0.1/0.1"
    """Shares of training, validation and test."""
    seed: int = 1234
    frozen: str | None = None
    """Folder prepared earlier, whose tickets stay in the split where they were."""
    min_count: int = 1
    """Labels with fewer tickets are dropped, or merged into `rest`."""
    rest: str | None = None
    balance: Literal["none", "cap", "oversample"] = "none"
    """Of the training split: cap every label at the mean count, or repeat tickets up to the largest label's count."""
    format: Literal["harmony", "completion"] = "harmony"
    instruction: str = DEFAULT_INSTRUCTION
    """`{labels}` stands for the list of labels, `{column}` for the column that they are from."""
    rendering: Rendering = "server"
    """`server`: as vLLM's chat API; `template`: as the Hub's chat template, two line breaks after the instruction."""
    loss: Loss = "last"
    """Which of the assistant's turns of a conversation are learnt: all, or the last one."""
    tokenizer: str | None = None
    """Folder or Hub id: renders with its chat template and counts tokens; without one, our own harmony template."""
    max_length: int | None = None
    """Longest prompt and answer in tokens."""
    too_long: Literal["cut", "head", "drop"] = "cut"
    """What happens to a longer ticket: its middle is cut out, only its beginning is kept, or it is dropped."""
    pack: int | None = None
    """Also write training and validation as packed sequences of so many tokens, for NeMo's packed path."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("format", ("harmony", "completion")),
            ("rendering", ("server", "template")),
            ("loss", ("all", "last")),
            ("multi_label", ("ask", "first")),
            ("balance", ("none", "cap", "oversample")),
            ("too_long", ("cut", "head", "drop")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}: choose {' or '.join(choices)}.")
        _ = self.shares
        if not 0.7 <= self.near_duplicates <= 1:  # what the bands of data_prep.duplicates find for sure
            raise ConfigurationError(f"near_duplicates is {self.near_duplicates}: choose from 0.7 to 1.")
        if self.rest is not None and self.min_count < 2:
            raise ConfigurationError("rest takes labels with fewer than min_count tickets: give min_count as well.")
        if self.min_count < 1:
            raise ConfigurationError(f"min_count is {self.min_count}: give 1, which keeps every label, or more.")
        for name in ("max_length", "pack"):
            tokens = getattr(self, name)
            if tokens is not None and tokens < 2:
                raise ConfigurationError(f"{name} is {tokens}: give a number of tokens that holds a prompt.")
            if tokens is not None and self.tokenizer is None:
                raise ConfigurationError(f"{name} counts tokens: name a tokenizer as well.")

    @property
    def shares(self) -> tuple[float, float, float]:
        """`split` as numbers: training, validation, test."""
        try:
            shares = tuple(float(part) for part in self.split.split("/"))
        except ValueError:
            shares = ()
        # written so that NaN fails too
        if not (len(shares) == 3 and min(shares) >= 0 and shares[0] > 0 and abs(sum(shares) - 1) <= 1e-6):
            raise ConfigurationError(
                f"split is {self.split!r}: give shares of training, validation and test that sum to 1, as 0.8/0.1/0.1."
            )
        return shares
