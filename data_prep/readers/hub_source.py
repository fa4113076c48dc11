"""Data sets of the Hugging Face Hub, and folders that the `datasets` library saved."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.values import one_line
from data_prep.readers.features import with_names
from data_prep.readers.rows import Damaged, OtherReading, Row, as_text, without_nulls

BATCH = 1024
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SAVED = ("dataset_dict.json", "dataset_info.json")


def is_hub_id(source: str) -> bool:
    """Whether a source is written as the Hub's `owner/name` and is no path here."""
    path = Path(source)
    return _ID.fullmatch(source) is not None and not path.suffix and not path.exists() and not path.parent.exists()


def is_saved(folder: Path) -> bool:
    """Whether the `datasets` library saved a data set in this folder."""
    return any((folder / name).is_file() for name in _SAVED)


@dataclass
class HubSource:
    """All splits of a data set, one after the other; classes by their names."""

    source: str
    name: str = field(init=False)
    columns: list[str] = field(init=False)
    remarks: list[str] = field(init=False)
    recoded: int = 0

    def __post_init__(self) -> None:
        import datasets

        self.name = self.source
        shows = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            folder = Path(self.source)
            loaded = datasets.load_from_disk(folder) if folder.is_dir() else datasets.load_dataset(self.source)
        # its own errors are OSErrors and ValueErrors; ImportError: a reader of pictures or sound that is not installed
        except (OSError, ValueError, ImportError) as error:
            raise DataError(
                f"the data set {self.source} cannot be read ({one_line(error)}): name a file, or owner/name on the Hub "
                "(HF_TOKEN opens private ones)."
            ) from None
        finally:
            if not shows:
                datasets.enable_progress_bars()
        self._splits: dict[Any, Any] = dict(loaded) if isinstance(loaded, dict) else {"": loaded}
        self.columns = list(dict.fromkeys(name for split in self._splits.values() for name in split.column_names))
        splits = ", ".join(name for name in self._splits if name)
        self.remarks = [f"{self.name}: the splits {splits} are taken together."] if len(self._splits) > 1 else []

    def rows(self, names: Sequence[str]) -> Iterator[Row | Damaged]:
        line = 0
        for split in self._splits.values():
            present = [name for name in names if name in split.column_names]
            classes = {name: found for name in present if (found := _classes(split.features[name]))}
            for batch in split.select_columns(present).iter(BATCH):
                for index in range(len(batch[present[0]]) if present else 0):
                    line += 1
                    values = {name: batch[name][index] for name in present}
                    named = {name: with_names(values[name], found) for name, found in classes.items()}
                    yield Row(line, [as_text(without_nulls({**values, **named}.get(name))) for name in names])

    def read_by_another(self, names: Sequence[str]) -> OtherReading | None:
        return None


def _classes(feature: Any) -> list[str]:
    """The names of a column's classes, or of the classes in its lists."""
    inner = getattr(feature, "feature", feature)
    return list(getattr(inner, "names", None) or [])
