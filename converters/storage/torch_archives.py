"""Read parts of tensors from torch.save's archives: torch.load would read whole tensors, and copy them twice."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from common.buffers import empty_bytes
from converters.storage.direct_io import DirectFile


@dataclass(frozen=True)
class _Layout:
    """Layout of an archive as torch.load reports it; archives with the same header bytes share it."""

    header: bytes
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    contiguous: bool
    first: int
    """Item of the storage with which the tensor begins."""
    bytes: int
    """Of the storage, which follows the header."""

    def run(self, offsets: Sequence[int], lengths: Sequence[int]) -> tuple[int, int] | None:
        """First item and number of items of a part, if they are neighbours in the storage."""
        split = next((axis for axis, length in enumerate(lengths) if length != 1), len(lengths))
        if not self.contiguous or tuple(lengths[split + 1 :]) != self.shape[split + 1 :]:
            return None
        start = sum(offset * stride for offset, stride in zip(offsets, self.stride, strict=True))
        return self.first + start, torch.Size(lengths).numel()


class TorchArchives:
    """Reads archives of one tensor each, whose layouts it learns from torch.load."""

    def __init__(self) -> None:
        self._layouts: dict[int, _Layout] = {}  # by the archive's length; the header's bytes are compared as well
        self._lock = threading.Lock()

    def read(
        self, file: DirectFile, position: int, size: int, offsets: Sequence[int], lengths: Sequence[int]
    ) -> torch.Tensor:
        """A part of the tensor whose archive stands in a file: `lengths` items from `offsets` on along each axis.

        Raises:
            RuntimeError, ValueError, EOFError, pickle.UnpicklingError: there is no whole archive.
        """
        layout = self._layout(file, position, size)
        data, item = position + len(layout.header), layout.dtype.itemsize
        run = layout.run(offsets, lengths)
        if run:
            first, count = run
            return _items(file, data + first * item, count * item, layout.dtype).reshape(tuple(lengths))
        whole = _items(file, data, layout.bytes, layout.dtype).as_strided(layout.shape, layout.stride, layout.first)
        return whole[region(offsets, lengths)]

    def dtype(self, file: DirectFile, position: int, size: int) -> torch.dtype:
        """Dtype of the tensor whose archive stands in a file; raises what `read` raises."""
        return self._layout(file, position, size).dtype

    def _layout(self, file: DirectFile, position: int, size: int) -> _Layout:
        layout = self._layouts.get(size)
        if layout is None or file.read(position, len(layout.header)).tobytes() != layout.header:
            layout = self._learn(file, position, size)
        return layout

    def _learn(self, file: DirectFile, position: int, size: int) -> _Layout:
        # a tensor without memory; its storage knows its offset in the archive
        with self._lock, FakeTensorMode():
            stream = io.BufferedReader(Slice(file, position, size))
            tensor = torch.load(stream, map_location="cpu", weights_only=True)
        storage = tensor.untyped_storage()
        layout = _Layout(
            file.read(position, storage._checkpoint_offset).tobytes(),
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
            tensor.is_contiguous(),
            tensor.storage_offset(),
            storage.nbytes(),
        )
        self._layouts[size] = layout
        return layout


def region(offsets: Sequence[int], lengths: Sequence[int]) -> tuple[slice, ...]:
    """The index of a part of a tensor: `lengths` items from `offsets` on along each axis."""
    return tuple(slice(start, start + length) for start, length in zip(offsets, lengths, strict=True))


def _items(file: DirectFile, position: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    content = file.read(position, size)
    if len(content) < size:
        raise EOFError(f"{file.path.name} is truncated")
    if not size:
        return torch.empty(0, dtype=dtype)
    if content.ctypes.data % 8:  # archives begin at any byte; the kernels need aligned items
        moved = empty_bytes(size)
        moved[:] = content
        content = moved
    return torch.from_numpy(content).view(dtype)


class Slice(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: DirectFile, start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def readinto(self, into: memoryview) -> int:
        size = min(len(into), self._size - self._position)
        content = self._file.read(self._start + self._position, max(0, size))
        into[: len(content)] = content.data
        self._position += len(content)
        return len(content)
