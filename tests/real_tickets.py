"""The two published ticket files, which lie beside the repository where somebody put them."""

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
