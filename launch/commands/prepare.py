"""`nemo-run prepare`: tickets become training data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.progress import bars

if TYPE_CHECKING:
    from data_prep.prepare_report import PrepareReport


def prepare_tickets(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="kaggle, sample, or files (CSV, TSV, JSON, Parquet, Excel, OpenDocument; .gz, .zst, .zip), folders.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    label: Annotated[str, typer.Option(help="Column to route by.")] = "queue",
    subject: Annotated[str | None, typer.Option(help="Column of the subject; found by name.")] = None,
    body: Annotated[str | None, typer.Option(help="Column of the text; found by name.")] = None,
    language: Annotated[str | None, typer.Option(help="Column of the language; found by name.")] = None,
    id: Annotated[str | None, typer.Option(help="Column of the ticket's id; found by name.")] = None,
    file: Annotated[str | None, typer.Option(help="One file of the Kaggle dataset or of a folder.")] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of text files whose bytes do not tell it, such as cp1251.")
    ] = None,
    multi_label: Annotated[str, typer.Option(help="Rows with several labels: ask (an error) or first.")] = "ask",
    skip: Annotated[list[str] | None, typer.Option(help="Cleaning rule to leave out; may be repeated.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A damaged row is an error.")] = False,
    near_duplicates: Annotated[
        float, typer.Option(help="Share of common word triples that makes two tickets one group; 1: exact copies only.")
    ] = 0.8,
    split: Annotated[str, typer.Option(help="Shares of training, validation and test.")] = "0.8/0.1/0.1",
    seed: Annotated[int, typer.Option(help="Of the split and of the order.")] = 1234,
    frozen: Annotated[
        Path | None, typer.Option(help="Folder prepared earlier: its tickets stay in their splits.")
    ] = None,
    min_count: Annotated[int, typer.Option(help="Labels with fewer tickets are dropped, or go to --rest.")] = 1,
    rest: Annotated[str | None, typer.Option(help="Label that takes the rare labels' tickets.")] = None,
    balance: Annotated[str, typer.Option(help="Of the training split: none, cap or oversample.")] = "none",
    format: Annotated[str, typer.Option(help="harmony or completion.")] = "harmony",
    instruction: Annotated[
        str | None, typer.Option(help="Instruction; {labels} stands for the labels, {column} for their column.")
    ] = None,
    rendering: Annotated[
        str, typer.Option(help="server: the prompt of vLLM's chat API; template: that of Hugging Face's chat template.")
    ] = "server",
    loss: Annotated[
        str, typer.Option(help="Turns of a conversation's assistant that are learnt: all, or the last one.")
    ] = "last",
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or Hub id: its chat template renders, its tokens are counted.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens.")] = None,
    too_long: Annotated[
        str, typer.Option(help="Longer tickets: cut (their middle), head (keep it alone) or drop.")
    ] = "cut",
    pack: Annotated[int | None, typer.Option(help="Also write packed sequences of so many tokens.")] = None,
) -> None:
    """Clean, de-duplicate, split and render tickets.

    Example: nemo-run prepare tickets.csv --out data/tickets --label queue
    """
    from data_prep.options import DEFAULT_INSTRUCTION, PrepareOptions
    from data_prep.preparation import prepare

    started = time.perf_counter()
    options = PrepareOptions(
        label=label,
        subject=subject,
        body=body,
        language=language,
        id=id,
        file=file,
        encoding=encoding,
        multi_label=multi_label,  # type: ignore[arg-type]  # PrepareOptions refuses what it does not know
        skip=tuple(skip or ()),
        strict=strict,
        near_duplicates=near_duplicates,
        split=split,
        seed=seed,
        frozen=str(frozen) if frozen else None,
        min_count=min_count,
        rest=rest,
        balance=balance,  # type: ignore[arg-type]
        format=format,  # type: ignore[arg-type]
        instruction=instruction or DEFAULT_INSTRUCTION,
        rendering=rendering,  # type: ignore[arg-type]
        loss=loss,  # type: ignore[arg-type]
        tokenizer=tokenizer,
        max_length=max_length,
        too_long=too_long,  # type: ignore[arg-type]
        pack=pack,
    )
    with bars() as progress:
        report = prepare(sources, out, options, progress)
    if report.current:
        print(f"{out} is current: {report.summary()}")
        return
    _show(report)
    print(f"wrote {out} in {time.perf_counter() - started:.1f} s; read {out / 'report.html'}")


def _show(report: PrepareReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"{report.rows:,} rows")
    rows = Table(show_header=False)
    rows.add_column()
    rows.add_column(justify="right")
    for name, count in (
        *((f"dropped: {reason}", count) for reason, count in report.dropped.items()),
        *((f"cleaned: {rule}", count) for rule, count in report.cleaned.items() if count),
        ("without subject, kept", report.without_subject),
        ("with several labels, of which the first was taken", report.several_labels),
        ("groups of near duplicates", report.duplicates.get("near_duplicate_groups", 0)),
        (
            "groups with conflicting labels, settled by majority",
            report.duplicates.get("groups_with_conflicting_labels", 0),
        ),
        ("cut to max_length", report.cut_tickets),
        ("further rows of conversations with several turns", report.further_rows),
    ):
        if count:
            rows.add_row(name, f"{count:,}")
    if rows.row_count:
        console.print(rows)
    table = Table(show_footer=True)
    splits = list(report.splits)
    table.add_column("label", footer="all")
    for split in splits:
        table.add_column(split, justify="right", footer=f"{report.splits[split]:,}")
    for label in report.labels:
        languages = report.table[label].values()
        table.add_row(label, *(f"{sum(counts.get(split, 0) for counts in languages):,}" for split in splits))
    if len(report.labels) > 1:
        console.print(table)
    for remark in report.remarks:
        console.print(f"note: {remark}", markup=False)
    for place in report.damaged[:5]:
        console.print(f"damaged: {place}", markup=False)
    for split, packing in report.packing.items():
        console.print(f"packed {split}: {packing['sequences']:,} × {packing['size']}, {packing['fill_ratio']:.1%} full")
