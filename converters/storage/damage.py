"""Whether a training's checkpoint is whole: nothing torn, nothing flipped."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from common.errors import CheckpointError
from common.foreign import file_in
from common.values import one_line
from converters.storage.checked_folder import ensure_safe
from converters.storage.direct_io import DirectFile
from converters.storage.metadata_file import read_metadata
from converters.storage.torch_archives import Slice

MOST_READ = 2**33
"""Bytes of a checkpoint up to which all of it is read: that of an adapter, in seconds. Of a larger one every length is
compared."""


def damage_of(weights: Path) -> str | None:
    """What is wrong with a `weights/` folder; None if nothing is.

    torch.save stores a CRC-32 of every tensor, which torch.load does not look at.
    """
    try:
        ensure_safe(weights)
        stored = read_metadata(weights / ".metadata").storage_data.values()
        files = {name: DirectFile(file_in(weights, name)) for name in {place.relative_path for place in stored}}
        sizes = {name: file.path.stat().st_size for name, file in files.items()}
        for place in stored:
            if place.offset + place.length > sizes[place.relative_path]:
                return f"{weights / place.relative_path} is truncated"
        if sum(sizes.values()) > MOST_READ:
            return None
        for place in stored:
            part = io.BufferedReader(Slice(files[place.relative_path], place.offset, place.length))
            with zipfile.ZipFile(part) as archive:
                if archive.testzip():
                    return f"{weights / place.relative_path} holds a tensor that is not what was written"
    except (CheckpointError, OSError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        return one_line(error)
    return None
