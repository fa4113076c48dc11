"""`nemo-run route`: a table of tickets through a served model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from common.progress import bars


def route_tickets(
    file: Annotated[Path, typer.Argument(help="Tickets: CSV, TSV, JSONL or Parquet.")],
    endpoint: Annotated[str, typer.Option(metavar="URL", help="OpenAI-compatible server; key in OPENAI_API_KEY.")],
    data: Annotated[Path, typer.Option(help="Prepared folder of the training: its labels and its prompt.")],
    out: Annotated[Path, typer.Option(help="CSV to write.")],
    subject: Annotated[str | None, typer.Option(help="Column of the subject.")] = None,
    body: Annotated[str | None, typer.Option(help="Column of the text.")] = None,
) -> None:
    """Ask a server for each ticket's label, constrained to the labels of the training.

    Adds the columns routed_to, probability and problem. A busy server is asked again; stopped, the same command goes
    on where it was.

    Example: nemo-run route tickets.csv --endpoint http://localhost:8000 --data runs/NAME/data --out routed.csv
    """
    from common.errors import DataError, LaunchError
    from data_prep.prepared import load_routing
    from serving.endpoint import Endpoint
    from serving.routing import route as route_table

    started = time.perf_counter()
    if out.exists() and out.samefile(file):
        raise DataError(f"{out} is the file that is read: name another with --out.")
    routing = load_routing(data)
    with bars() as progress:
        routed = route_table(file, out, routing, Endpoint(endpoint), subject=subject, body=body, progress=progress)
    print(f"wrote {out}: {routed.rows:,} rows in {time.perf_counter() - started:.1f} s")
    if routed.resumed:
        print(f"{routed.resumed:,} of them were routed before")
    if routed.damaged:
        print(f"{routed.damaged:,} rows could not be read and are left out")
    if routed.problems:
        print(f"{len(routed.problems):,} rows have a problem instead of a label, such as: {routed.problems[0]}")
        if len(routed.problems) == routed.rows:
            raise LaunchError(f"no row of {file} was routed: {routed.problems[0]}")
