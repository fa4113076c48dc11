"""Read tickets from a file, and find the columns that matter by their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.options import PrepareOptions
from errors import DataError

Row = dict[str, str]
# Usual names, the Kaggle files' first; then those of Zendesk, Jira and OTOBO exports.
SUBJECTS = ("subject", "title", "summary", "betreff")
BODIES = ("body", "description", "text", "message", "content", "beschreibung")
LANGUAGES = ("language", "lang", "locale", "sprache")
IDS = ("id", "ticket_id", "ticket id", "key", "issue key", "ticketnumber")


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read; `body` or `subject` may be missing, not both."""

    label: str
    subject: str | None
    body: str | None
    language: str | None
    id: str | None


def read_source(source: str, options: PrepareOptions) -> tuple[list[Row], Columns]:
    """All rows as text, and the columns to read.

    Raises:
        DataError: no such file, an unknown format, empty, undecodable, or a column is missing.
    """
    if source == "sample":
        from data_prep.sample import sample_tickets

        frame = sample_tickets()
    else:
        frame = _read_file(Path(source))
    if not len(frame):
        raise DataError(f"{source} holds no tickets: export it again.")
    columns = find_columns([str(name) for name in frame.columns], source, options)
    return frame.astype(object).where(frame.notna(), "").astype(str).to_dict("records"), columns


def find_columns(names: list[str], source: str, options: PrepareOptions) -> Columns:
    """The columns to read: those that the options name, else those with a usual name.

    Raises:
        DataError: a named column, the label, or both subject and body are missing.
    """
    by_name = {name.strip().casefold(): name for name in names}

    def find(chosen: str | None, usual: tuple[str, ...], what: str) -> str | None:
        if chosen is not None:
            if chosen.casefold() not in by_name:
                raise DataError(f"{source} has no column {chosen!r} for the {what}: it has {', '.join(names)}.")
            return by_name[chosen.casefold()]
        return next((by_name[name] for name in usual if name in by_name), None)

    label = find(options.label, (), "label")
    subject, body = find(options.subject, SUBJECTS, "subject"), find(options.body, BODIES, "body")
    if subject is None and body is None:
        raise DataError(f"{source} has no column for the text: name it with --body; it has {', '.join(names)}.")
    assert label is not None
    return Columns(label, subject, body, find(options.language, LANGUAGES, "language"), find(options.id, IDS, "id"))


def _read_file(path: Path) -> Any:
    import pandas as pd
    import pyarrow as pa

    if not path.is_file():
        raise DataError(f"there is no ticket source {path}: name a file, or `sample`.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: export it again.")
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            separator = "\t" if suffix == ".tsv" else None if _unclear(path) else ","
            return pd.read_csv(
                path, sep=separator, dtype=str, keep_default_na=False, engine="python", encoding="utf-8-sig"
            )
        if suffix in (".jsonl", ".ndjson"):
            return pd.read_json(path, lines=True, dtype=False)  # pyright: ignore[reportArgumentType]
        if suffix == ".parquet":
            return pd.read_parquet(path)
    except (ValueError, pd.errors.ParserError, pd.errors.EmptyDataError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as {suffix[1:]} ({str(error)[:150]}): export it again.") from None
    raise DataError(f"{path} is of an unknown kind: .csv, .tsv, .jsonl and .parquet are read.")


def _unclear(path: Path) -> bool:
    """Whether the heading holds no comma, so that another separator must be found."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return "," not in file.readline()
