"""Tensors as torch.save stores them, taken from their bytes: torch.load would copy them twice."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

import numpy as np
import torch

from converters.memory import empty_bytes


@dataclass(frozen=True)
class _Layout:
    """What torch said of an archive: with the same header, the same follows."""

    header: bytes
    dtype: torch.dtype
    shape: torch.Size


class TorchArchives:
    """Archives of one contiguous tensor each; what stands in their headers is learned from torch.load."""

    def __init__(self) -> None:
        self._layouts: dict[int, _Layout] = {}  # by the archive's length

    def tensor(self, archive: np.ndarray) -> torch.Tensor:
        """The tensor of an archive, uint8 (size,).

        Raises:
            RuntimeError, ValueError, EOFError, pickle.UnpicklingError: it is none.
        """
        layout = self._layouts.get(len(archive))
        if layout is None or archive[: len(layout.header)].tobytes() != layout.header:
            return self._learn(archive)
        start = len(layout.header)
        stored = archive[start : start + layout.shape.numel() * layout.dtype.itemsize]
        data = empty_bytes(len(stored))  # a copy, because archives begin anywhere: items must begin where theirs may
        data[:] = stored
        return torch.from_numpy(data).view(layout.dtype).reshape(layout.shape)

    def _learn(self, archive: np.ndarray) -> torch.Tensor:
        content = io.BytesIO(archive.tobytes())
        value = torch.load(content, map_location="cpu", weights_only=True)
        if value.numel() and value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes:
            start = _data_start(content)
            data = value.reshape(-1).view(torch.uint8).numpy()
            if np.array_equal(archive[start : start + len(data)], data):
                self._layouts[len(archive)] = _Layout(archive[:start].tobytes(), value.dtype, value.shape)
        return value


def _data_start(archive: io.BytesIO) -> int:
    """Where the tensor's bytes begin. Source: the ZIP format, PKWARE's APPNOTE, section 4.3.7."""
    (record,) = (record for record in zipfile.ZipFile(archive).infolist() if record.filename.endswith("/data/0"))
    fixed, lengths = 30, slice(26, 30)  # of the header before the record; of its name and its extra field
    header = archive.getbuffer()[record.header_offset :][:fixed]
    name, extra = np.frombuffer(header[lengths], "<u2")
    return record.header_offset + fixed + int(name) + int(extra)
