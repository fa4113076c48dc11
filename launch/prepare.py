"""`nemo-run prepare`: tickets become training data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


def prepare(
    source: Annotated[str, typer.Argument(help="`sample`, or a CSV, TSV, JSONL or Parquet file.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    label: Annotated[str, typer.Option(help="Column to route by.")] = "queue",
    subject: Annotated[str | None, typer.Option(help="Column of the subject; found by name.")] = None,
    body: Annotated[str | None, typer.Option(help="Column of the text; found by name.")] = None,
    language: Annotated[str | None, typer.Option(help="Column of the language; found by name.")] = None,
    id: Annotated[str | None, typer.Option(help="Column of the ticket's id; found by name.")] = None,
    format: Annotated[str, typer.Option(help="harmony or completion.")] = "harmony",
    tokenizer: Annotated[str | None, typer.Option(help="Folder or Hub id whose chat template is used.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 1234,
) -> None:
    """Clean, de-duplicate, split and render tickets.

    Example: nemo-run prepare tickets.csv --out data/tickets --label queue
    """
    from data_prep.options import PrepareOptions
    from data_prep.prepare import prepare as prepare_tickets
    from errors import ConfigurationError

    if format not in ("harmony", "completion"):
        raise ConfigurationError(f"there is no format {format!r}: choose harmony or completion.")
    started = time.perf_counter()
    options = PrepareOptions(
        label=label,
        subject=subject,
        body=body,
        language=language,
        id=id,
        format=format,  # type: ignore[arg-type]
        tokenizer=tokenizer,
        max_length=max_length,
        seed=seed,
    )
    report = prepare_tickets(source, out, options)
    print(report.summary())
    print(f"wrote {out} in {time.perf_counter() - started:.1f} s")
