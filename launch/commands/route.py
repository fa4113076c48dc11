"""`nemo-run route`: a table of tickets through a served model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from common.progress import bars
from common.values import one_line


def route_tickets(
    file: Annotated[Path, typer.Argument(help="Tickets: CSV, TSV, JSONL, Parquet or a spreadsheet.")],
    endpoint: Annotated[str, typer.Option(metavar="URL", help="OpenAI-compatible server; key in OPENAI_API_KEY.")],
    data: Annotated[Path, typer.Option(help="Prepared folder of the training: its labels and its prompt.")],
    out: Annotated[Path, typer.Option(help="CSV to write.")],
    subject: Annotated[str | None, typer.Option(help="Column of the subject.")] = None,
    body: Annotated[str | None, typer.Option(help="Column of the text.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the served model; by default the only one, or the only adapter.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Score every label, as evaluate does: the likeliest whole answer.")
    ] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Ask the chat API, whose server renders the prompt.")] = False,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 16,
    escape: Annotated[
        bool, typer.Option("--escape-formulas/--keep-formulas", help="An apostrophe before cells a spreadsheet runs.")
    ] = True,
) -> None:
    """Ask a server for each ticket's label, constrained to the labels of the training.

    Adds the columns routed_to, probability and problem. A busy server is asked again; stopped, the same command goes
    on where it was. Beside the table, OUT.manifest.json says which model was asked and how.

    Example: nemo-run route new.csv --endpoint http://localhost:8000 --data runs/tickets/data --out routed.csv
    """
    from common.errors import DataError, LaunchError
    from data_prep.prepared import load_routing
    from serving.endpoint import Endpoint
    from serving.routing import route as route_table

    started = time.perf_counter()
    if out.exists() and file.exists() and out.samefile(file):
        raise DataError(f"{out} is the file that is read: name another with --out.")
    routing = load_routing(data)
    with bars() as progress, Endpoint(endpoint, model=model, concurrency=concurrency) as server:
        routed = route_table(
            file,
            out,
            routing,
            server,
            subject=subject,
            body=body,
            exact=exact,
            chat=chat,
            escape=escape,
            progress=progress,
        )
    how = "by the scores of all labels" if exact else f"constrained by {routed.constraint}"
    if not exact and routed.constraint is None:
        how = "which obeys no constraint to the labels"
    print(f"asked {one_line(routed.model)} at {server.url}, {how}")
    if routed.restarted:
        print(f"an interrupted routing was given up: its {routed.restarted} was another")
    rows = routed.rows - routed.resumed
    seconds = time.perf_counter() - started
    print(f"wrote {out}: {routed.rows:,} rows in {seconds:.1f} s, {rows / seconds:.1f} a second")
    if routed.resumed:
        print(f"{routed.resumed:,} of them were routed before")
    if routed.damaged:
        print(f"{routed.damaged:,} rows could not be read and are left out")
    if routed.problems:
        print(f"{routed.problems:,} rows have a problem, such as: {routed.example}")
        if not routed.labelled and not routed.resumed:
            raise LaunchError(f"no row of {file} was routed: {routed.example}")
