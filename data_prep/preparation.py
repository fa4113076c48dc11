"""A ticket source → cleaned, grouped, split and rendered JSONL, with a report that accounts for every row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import artifacts
from common.errors import ConfigurationError, DataError
from common.foreign import file_in
from common.progress import Progress, quiet
from data_prep import splitting
from data_prep.cleaning import WRITTEN_BREAKS
from data_prep.intake import Intake, Spool, take_in
from data_prep.options import PrepareOptions
from data_prep.prepare_report import PrepareReport
from data_prep.prepare_report_page import write_html
from data_prep.prepared import is_prepared
from data_prep.readers.hub_source import HubSource, is_hub_id, is_saved
from data_prep.rendering import Renderer
from data_prep.selection import select
from data_prep.sources import TABLES, Rows, Source, file_of, is_table, open_source, tables_of
from data_prep.writing import write_all_packed, write_rows

DEFAULTS = PrepareOptions()
KIND = "prepared-tickets"
FORMAT = 6  # of the output; raise it when code changes what the same input gives
MOST_LABELS = 1000
WRITTEN = (*(f"{split}.jsonl" for split in splitting.SPLITS), splitting.SPLITS_FILE, "labels.json", "report.json")


def prepare(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    options: PrepareOptions = DEFAULTS,
    progress: Progress = quiet,
) -> PrepareReport:
    """Write the splits as JSONL, labels.json, splits.csv, report.json and report.html to `out`.

    Args:
        source: `sample`, `kaggle`, a CSV, TSV, JSONL or Parquet file, a folder of them, several of these, or a folder
            that this function wrote, which is copied; or a data set of the Hub (`owner/name`).
        progress: receives the reports of each step.
    Raises:
        DataError: a source is missing, empty, unreadable or lacks a column, or nothing is left to train or test on.
        ConfigurationError: options contradict each other.
    """
    out = Path(out)
    sources = [source] if isinstance(source, str | Path) else list(source)
    if not sources:
        raise ConfigurationError("no ticket source is named: name a file, a folder, kaggle or sample.")
    if len(sources) == 1 and is_prepared(Path(sources[0])):
        return _copy(Path(sources[0]), out)
    paths = [path for item in sources for path in _paths(str(item), options)]
    inputs = _inputs(paths, options)
    if artifacts.is_current(out, artifacts.fingerprint(inputs)):
        return replace(_stored_report(out), current=True)
    with artifacts.new_folder(out) as folder:
        spool_file = folder / "spool"
        with closing(Spool(spool_file)) as spool:
            intake = take_in(_opened(paths, options), spool, options, progress)
            report = _write(intake, folder, options, progress)
        spool_file.unlink()
        artifacts.write_manifest(folder, KIND, inputs)
    return report


def sources_of(source: str, options: PrepareOptions) -> Iterator[Source]:
    """The tables that `prepare` reads of a source.

    Raises:
        DataError: it is missing or unreadable.
    """
    return _opened(_paths(source, options), options)


def _opened(paths: Sequence[str | Path], options: PrepareOptions) -> Iterator[Source]:
    return (_open(path, options) for path in paths)


def _paths(source: str, options: PrepareOptions) -> list[str | Path]:
    """The files behind one source."""
    if source == "sample":
        return ["sample"]
    if source == "kaggle":
        from data_prep.kaggle_source import fetch

        return [fetch(options.file)]
    path = Path(source)
    if is_hub_id(source) or is_saved(path):
        return [source]
    if path.is_dir():
        files = [
            table for file in sorted(path.iterdir()) if file.is_file() and is_table(file) for table in tables_of(file)
        ]
    else:
        files = tables_of(path)
    if files == [path]:
        return [path]
    if options.file is not None:
        files = [file for file in files if file.name == options.file]
    if not files:
        what = options.file or f"file of the kinds {', '.join(TABLES)}"
        raise DataError(f"{path} holds no {what}: name another.")
    return list(files)


def _open(path: str | Path, options: PrepareOptions) -> Source:
    if path == "sample":
        from data_prep.sample import COLUMNS, sample_tickets

        return Rows("sample", sample_tickets(), list(COLUMNS))
    if isinstance(path, str):
        return HubSource(path)
    return open_source(path, options.encoding)


def _inputs(paths: Sequence[str | Path], options: PrepareOptions) -> dict[str, Any]:
    """Everything that decides the output, for its fingerprint."""
    sources = []
    for path in paths:
        file = file_of(Path(path))
        if file.is_dir():
            sources.append({str(each.relative_to(file)): artifacts.hash_file(each) for each in file.rglob("*.*")})
        else:
            sources.append({"name": Path(path).name, "sha256": artifacts.hash_file(file)} if file.is_file() else path)
    frozen = Path(options.frozen) / splitting.SPLITS_FILE if options.frozen else None
    return _tokenizer(options.tokenizer) | {
        "format": FORMAT,
        "sources": sources,
        "options": asdict(options),
        "frozen": artifacts.hash_file(frozen) if frozen and frozen.is_file() else None,
    }


def _tokenizer(name: str | None) -> dict[str, Any]:
    """The files of a local tokenizer, an edit of which changes every prompt."""
    folder = Path(name) if name else None
    if folder is None or not folder.is_dir():
        return {}
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".json", ".jinja") and file.is_file()]
    return {"tokenizer": {file.name: artifacts.hash_or_size(file) for file in files}}


def _write(intake: Intake, folder: Path, options: PrepareOptions, progress: Progress) -> PrepareReport:
    report = _report_of(intake, options)
    if not len(intake.keys):
        raise DataError(f"no ticket is left of {intake.rows:,} rows ({report.lost()}): look at the source.")
    selection = select(intake, options, report, progress)
    chat = any(columns.messages for columns in intake.columns.values())
    if chat and not all(columns.messages for columns in intake.columns.values()):
        raise DataError("some of the sources are conversations and some are tickets: prepare them one by one.")
    if not chat and len(selection.names) > MOST_LABELS:
        raise DataError(
            f"the label column has {len(selection.names):,} different values: name the one to route by with --label."
        )
    column = next((columns.label for columns in intake.columns.values()), None)
    renderer = Renderer(options, column, [] if chat else selection.names)
    write_rows(intake, selection, renderer, folder, options, report, progress)
    splitting.write_splits(folder / splitting.SPLITS_FILE, selection.grouped, selection.places)
    labels = [{"label": label, "completion": completion} for label, completion in renderer.completions.items()]
    prompt = None if chat else {**asdict(renderer.prompt), "end": renderer.end}
    # where no source wrote its breaks out, a ticket that is routed keeps its backslashes as well
    meant = len(intake.meant_backslashes) == len(intake.columns)
    skip = [*options.skip, *([WRITTEN_BREAKS] if meant else [])]
    facts = {"column": column, "format": options.format, "skip": skip, "prompt": prompt, "labels": labels}
    _write_json(folder / "labels.json", facts)
    if options.pack is not None:
        report.packing = write_all_packed(folder, renderer.tokenizer, options.pack, progress)
    _write_json(folder / "report.json", report.stored())
    write_html(report, folder / "report.html")
    return report


def _report_of(intake: Intake, options: PrepareOptions) -> PrepareReport:
    report = PrepareReport(
        options=asdict(options),
        rows=intake.rows,
        dropped=dict(intake.dropped),
        cleaned=dict(intake.cleaner.changed),
        recoded_lines=intake.recoded,
        without_subject=intake.without_subject,
        several_labels=intake.several_labels,
        remarks=intake.remarks,
        accounts=intake.accounts,
        damaged=intake.damaged,
        before_and_after=[[before, after] for _, before, after in intake.examples],
    )
    report.sources = {name: asdict(columns) for name, columns in intake.columns.items()}
    return report


def _copy(source: Path, out: Path) -> PrepareReport:
    """Take over a folder that was prepared before."""
    missing = [name for name in WRITTEN if not (source / name).is_file()]
    if missing:
        raise DataError(f"{source} lacks {missing[0]}: prepare it again.")
    if source.resolve() != out.resolve():
        with artifacts.new_folder(out) as folder:
            for name in manifest.files if (manifest := artifacts.read_manifest(source)) else WRITTEN:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file_in(source, name), folder / name)
            artifacts.write_manifest(folder, KIND, {"copied": str(source.resolve())})
    return _stored_report(out)


def _stored_report(folder: Path) -> PrepareReport:
    try:
        return PrepareReport(**json.loads((folder / "report.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        raise DataError(f"{folder / 'report.json'} is damaged: prepare the tickets again.") from None


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
