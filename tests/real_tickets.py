"""What lies beside the repository where somebody put it: the two published ticket files, gpt-oss's vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

_FOLDER = REPOSITORY.parent / "shared" / "data" / "tickets"
MAIN, GERMAN = "aa_dataset-tickets-multi-lang-5-2-50-version.csv", "dataset-tickets-german_normalized.csv"


def real_tickets(name: str) -> Path:
    """The file, or a skipped test that names it."""
    if not (_FOLDER / name).is_file():
        pytest.skip(f"../shared/data/tickets/{name} is not here")
    return _FOLDER / name


def real_vocabulary() -> Path:
    """gpt-oss's vocabulary, or a skipped test that names it."""
    file = _FOLDER.parent / "tokenizer" / "o200k_base.tiktoken"
    if not file.is_file():
        pytest.skip(f"../shared/data/tokenizer/{file.name} is not here")
    return file
