"""Which reader a ticket source has."""

from __future__ import annotations

from pathlib import Path

from common.errors import DataError
from data_prep.readers import unpacked
from data_prep.readers.rows import Damaged, Row, Rows, Source

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx", ".xls", ".ods")
TEXTS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
LISTS = (".tab", ".txt")
"""Tables of text where a file is named; in a folder they may be anything, such as a README."""
CONTENTS = {b"PAR1": ".parquet", b"PK\x03\x04": ".xlsx", b"\xd0\xcf\x11\xe0": ".xls"}
"""What a file holds by its first bytes, whatever its name says."""
SUFFIXES = (*TABLES, *(text + packed for text in TEXTS for packed in unpacked.PACKED), unpacked.ARCHIVE)

__all__ = ["SUFFIXES", "TABLES", "Damaged", "Row", "Rows", "Source", "file_of", "is_table", "open_source", "tables_of"]


def is_table(path: Path) -> bool:
    """Whether a file's name says that it holds tickets."""
    return path.name.lower().endswith(SUFFIXES)


def file_of(path: Path) -> Path:
    """The file to which a path leads: the archive of a table in one."""
    inside = unpacked.archive_of(path)
    return inside[0] if inside else path


def tables_of(path: Path) -> list[Path]:
    """The tables in an archive, or the file itself."""
    if path.suffix.lower() == unpacked.ARCHIVE and path.is_file():
        return [member for member in unpacked.members(path) if member.suffix.lower() in TEXTS]
    return [path]


def open_source(path: Path, encoding: str | None = None) -> Source:
    """The table in a file, which may be packed.

    Args:
        encoding: of a text file, where its bytes do not tell.
    Raises:
        DataError: no such file, an unknown kind, empty, or unreadable from its beginning.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path} is no regular file: name a file, a folder, kaggle or sample.")
    if not unpacked.is_there(path):
        raise DataError(f"there is no ticket source {path}: name a file, a folder, kaggle or sample.")
    inside = tables_of(path)
    if inside != [path]:
        if len(inside) != 1:
            listed = ", ".join(each.name for each in inside[:5]) or "none"
            raise DataError(
                f"{path} should hold one table and holds {len(inside)} ({listed}): name one as {path}/NAME."
            )
        path = inside[0]
    match _kind_of(path):
        case ".csv" | ".tsv":
            from data_prep.readers.delimited import CsvSource

            return CsvSource(path, encoding)
        case ".json" | ".jsonl" | ".ndjson":
            from data_prep.readers.json_source import JsonSource

            return JsonSource(path, encoding)
        case ".parquet" if not unpacked.is_packed(path):
            from data_prep.readers.tables import ParquetSource

            return ParquetSource(path)
        case ".xlsx" | ".xls" | ".ods" if not unpacked.is_packed(path):
            from data_prep.readers.tables import SpreadsheetSource

            return SpreadsheetSource(path)
    kinds = ", ".join((*TABLES, *LISTS))
    raise DataError(f"{path} is of an unknown kind: {kinds} are read, texts also as .gz, .zst and .zip.")


def _kind_of(path: Path) -> str:
    """The suffix of what a file holds: by its first bytes, else by its name."""
    with unpacked.open_bytes(path) as file:
        head = file.peek(4)[:4]
    if not head:
        raise DataError(f"{path} is empty: export it again.")
    named = unpacked.suffix_of(path)
    if named in (*TABLES, *LISTS) and head in CONTENTS:
        return CONTENTS[head]  # the reader of spreadsheets takes .xls, .xlsx and .ods by their contents itself
    if named in LISTS:
        return ".csv"
    if named != ".xls":
        return named
    if head.lstrip(b"\xef\xbb\xbf").startswith(b"<"):
        raise DataError(f"{path} is a web page or XML by its content: open it as a spreadsheet and save it as .xlsx.")
    return ".csv"  # help desks name tables of text so, that Excel may open them
