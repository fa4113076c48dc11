"""Files of folders that others made. `file_in` alone says where one lies; it follows no link out of the folder."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from common.errors import CheckpointError

LARGEST_JSON = 2**24
"""Bytes; the index of a model of a thousand layers has two million."""


def file_in(folder: Path, name: str) -> Path:
    """The path of a file in a folder that somebody else made, whether there is one or not.

    The Hub's cache keeps the files of `snapshots/REVISION` in `blobs/` of the same model, and links to them.

    Raises:
        CheckpointError: the name or a link leads out of the folder, or something else than a file has this name.
    """
    path = folder / name
    target, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if not any(target.is_relative_to(each) for each in (home, *_hub_blobs(home))):
        raise CheckpointError(
            f"{path} leads out of its folder, to {target}: nothing there was read. Copy that file to where the link "
            "is if you trust whoever made the folder."
        )
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): fetch it again.") from None
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path} is no file but a folder, a pipe or a device: fetch it again.")
    return path


def read_json(folder: Path, name: str) -> Any:
    """What a JSON file of such a folder holds.

    Raises:
        CheckpointError: as `file_in`. OSError: it is missing or cannot be read.
        ValueError: it is no JSON, too large or too deep, or an object has a key twice.
    """
    path = file_in(folder, name)
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"{size:,} bytes are more than the {LARGEST_JSON:,} that are read")
    return parse_json(path.read_bytes())


def parse_json(text: bytes) -> Any:
    """JSON whose objects have each key once, nested no deeper than Python goes.

    Raises:
        ValueError: it is no such JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    items: dict[str, Any] = {}
    for key, value in pairs:
        if key in items:
            raise ValueError(f"{ascii(key)[:100]} stands in it twice")
        items[key] = value
    return items


def _hub_blobs(folder: Path) -> list[Path]:
    """Where the Hub's cache keeps the files of this snapshot, if `folder` is one; and those of any other model."""
    from huggingface_hub.constants import HF_HUB_CACHE

    model = folder.parent.parent
    own = [model / "blobs"] if folder.parent.name == "snapshots" and model.name.startswith("models--") else []
    return [*own, Path(os.path.realpath(HF_HUB_CACHE))]
