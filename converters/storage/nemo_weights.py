"""Weights of NeMo and Megatron-Bridge on disk (torch.distributed.checkpoint), read and written piece by piece.

No model is built and torch.distributed is not initialised. A tensor of the table is stored as one chunk for each layer
(and expert), which is what lets Megatron load it at any TP, EP and PP.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import WriteResult
from torch.utils.serialization import config as serialization

from common.artifacts import FINISHED, write_bytes
from common.errors import CheckpointError
from common.foreign import file_in
from common.values import one_line
from converters.storage.checked_folder import load_saved
from converters.storage.direct_io import DirectFile, WriteStream
from converters.storage.metadata_file import read_metadata
from converters.storage.pool import run_all
from converters.storage.torch_archives import TorchArchives, region

PREFIX = "module."
"""Of the model's keys in NeMo 2; Megatron-Bridge has none."""
# What megatron-core's dist_checkpointing looks for beside the tensors.
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
# Bytes of one file: what a killed run does again at most, times the number of threads.
SHARD_SIZE = 2**30


@dataclass(frozen=True)
class Piece:
    """A part of a stacked tensor, with the function that produces it when the writer needs its bytes."""

    key: str
    shape: tuple[int, ...]
    """Of the whole stacked tensor."""
    offset: tuple[int, ...]
    size: tuple[int, ...]
    dtype: torch.dtype
    produce: Callable[[], torch.Tensor]

    @property
    def index(self) -> MetadataIndex:
        return MetadataIndex(self.key, torch.Size(self.offset))

    @property
    def chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size(self.offset), torch.Size(self.size))

    @property
    def bytes(self) -> int:
        return torch.Size(self.size).numel() * self.dtype.itemsize


def write_weights(
    folder: Path,
    pieces: Sequence[Piece],
    empty_states: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda size, tensors: None,
    common: Mapping[str, Any] | None = None,
) -> None:
    """Write `folder` as Megatron's torch_dist checkpoint; each thread has one piece in memory at a time.

    Files that an interrupted run has finished are kept: the pieces must be the same. Their notes end in `FINISHED`;
    the caller removes the notes.

    Args:
        empty_states: keys of module states that Megatron asks for and that hold nothing.
        progress: called with bytes and number of pieces after they were produced.
        common: what common.pt holds, plain values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = _Writer(folder)
    writer.set_up_storage_writer(is_coordinator=True)
    shards = _shards(pieces)
    items: list[list[WriteItem]] = [[_tensor_item(piece) for piece in shard] for shard in shards]
    items.append([WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO) for key in empty_states])
    plans = writer.prepare_global_plan([SavePlan(part) for part in items])
    results: list[list[WriteResult]] = [[] for _ in plans]

    def write(number: int) -> None:
        # Written after the file was flushed to disk, so its presence says that the file is whole.
        finished = folder / f"__{number}{FINISHED}"
        shard = [*shards, []][number]
        if _noted(finished) is not None:
            progress(sum(piece.bytes for piece in shard), len(shard))
        else:
            # Torch's checksums are a third of the work, and no reader of its files looks at them; set for each thread.
            with serialization.patch("save.compute_crc32", False):  # pyright: ignore[reportAttributeAccessIssue]
                written = writer.write_data(plans[number], _Producer(shard, progress)).wait()
            write_bytes(finished, _note(written))
        # read back in either case: shared objects decide the bytes of .metadata, and a resume must not change them
        results[number] = _noted(finished) or []

    run_all((lambda number=number: write(number)) for number in range(len(plans)))
    writer.finish(_metadata(pieces, empty_states), results)
    torch.save(dict(common or {}), folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(FORMAT))


def _note(written: Sequence[WriteResult]) -> bytes:
    """What a shard's file holds and where, for a run that goes on; JSON, as the folder may be anybody's."""
    rows = []
    for each in written:
        index, place = each.index, each.storage_data
        row = (
            index.fqn,
            index.offset,
            index.index,
            each.size_in_bytes,
            place.relative_path,
            place.offset,
            place.length,
        )
        rows.append(row)
    return json.dumps(rows).encode()


def _noted(file: Path) -> list[WriteResult] | None:
    """What `_note` wrote; None for anything else, such as the pickles of former versions: the shard is written anew."""
    shared: dict[str, str] = {}  # a string that is one object stands once in .metadata
    try:
        return [
            WriteResult(
                MetadataIndex(fqn, None if offset is None else torch.Size(offset), index),
                size,
                _StorageInfo(shared.setdefault(path, path), start, length),
            )
            for fqn, offset, index, size, path, start, length in json.loads(file.read_bytes())
        ]
    except (OSError, ValueError, TypeError):
        return None


def _shards(pieces: Sequence[Piece]) -> list[list[Piece]]:
    shards: list[list[Piece]] = []
    size = SHARD_SIZE
    for piece in pieces:
        if size + piece.bytes > SHARD_SIZE:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += piece.bytes
    return shards


def _tensor_item(piece: Piece) -> WriteItem:
    data = TensorWriteData(piece.chunk, TensorProperties(dtype=piece.dtype), torch.Size(piece.shape))
    return WriteItem(index=piece.index, type=WriteItemType.SHARD, tensor_data=data)


def _metadata(pieces: Sequence[Piece], empty_states: Sequence[str]) -> Metadata:
    stored: dict[str, Any] = {key: BytesStorageMetadata() for key in empty_states}
    for piece in pieces:
        whole = TensorStorageMetadata(TensorProperties(dtype=piece.dtype), torch.Size(piece.shape), [])
        tensor = stored.setdefault(piece.key, whole)
        tensor.chunks.append(piece.chunk)
        # a layer may be stored in a dtype of its own; the whole is said to be what holds the values of all
        tensor.properties.dtype = torch.promote_types(tensor.properties.dtype, piece.dtype)
    return Metadata(stored)


class _Files(FileSystem):
    """Writes new files past the page cache."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Generator[io.IOBase, None, None]:
        if mode == "wb":
            with WriteStream(Path(path)) as stream:
                yield stream
        else:
            with super().create_stream(path, mode) as stream:
                yield stream


class _Writer(FileSystemWriter):
    """Deterministic writer: it leaves out the path and the random number that torch stores and no reader uses."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fs = _Files()

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()


class _Producer(DefaultSavePlanner):
    """Produces each tensor when the writer asks for it."""

    def __init__(self, pieces: Sequence[Piece], progress: Callable[[int, int], None]) -> None:
        super().__init__()
        self.progress = progress
        self.pieces = {piece.index: piece for piece in pieces}

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            buffer = io.BytesIO()
            torch.save([None], buffer)  # megatron-core keeps a list of the objects under a key
            return buffer
        piece = self.pieces[write_item.index]
        value = piece.produce().to(piece.dtype).reshape(piece.size)
        self.progress(piece.bytes, 1)
        # torch.save writes a view's whole storage: a piece must own exactly its bytes
        return value if value.untyped_storage().nbytes() == piece.bytes else value.clone()


# megatron-core 0.19's key of what common.pt held before (dist_checkpointing.serialization.load_common_state_dict)
_COMMON = "common_state/shard_0_1"
# megatron-core's optimizers: `optimizer.`, or `chained_0.optimizer.` where experts have one of their own
_OPTIMIZER = re.compile(r"(chained_\d+\.)?optimizer\.")
_UNREADABLE = (OSError, RuntimeError, EOFError, KeyError, ValueError, UnpicklingError)
"""What torch and the system raise of a damaged file."""


class WeightsReader:
    """Random access to the tensors of a torch_dist folder, at whatever layout they were saved.

    Args:
        prefix: of the model's keys.
    Raises:
        CheckpointError: the folder is no torch_dist checkpoint, or damaged.
    """

    def __init__(self, folder: Path, prefix: str = PREFIX) -> None:
        self.folder, self.prefix = folder, prefix
        if not (folder / ".metadata").is_file():
            raise CheckpointError(f"{folder} holds no NeMo weights (.metadata is missing): name a NeMo checkpoint.")
        self.metadata = read_metadata(file_in(folder, ".metadata"))
        self._chunks = cache(self._chunks_by_leading)
        self._archives = TorchArchives()
        self._open = lru_cache(64)(DirectFile)  # Megatron writes two files a rank

    @cached_property
    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """Stored tensors of the model by their key below the prefix; optimizer state is left out."""
        stored = self.metadata.state_dict_metadata
        return {
            key.removeprefix(self.prefix): value
            for key, value in stored.items()
            if key.startswith(self.prefix) and isinstance(value, TensorStorageMetadata) and not _OPTIMIZER.match(key)
        }

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of the whole stacked tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if key not in self.tensors:
            raise CheckpointError(
                f"{self.folder} lacks {self.prefix}{key}: it is no gpt-oss checkpoint, or incomplete."
            )
        return tuple(self.tensors[key].size)

    def dtype(self, key: str, *leading: int) -> torch.dtype:
        """Stored dtype of a tensor, or of its part at indices of its leading axes, which may be a narrower one.

        Raises:
            CheckpointError: the file of the part is damaged.
        """
        chunks = self._chunks(key, len(leading)).get(leading) if leading else None
        if not chunks:
            return self.tensors[key].properties.dtype
        stored = self.metadata.storage_data[MetadataIndex(self.prefix + key, chunks[0].offsets)]
        try:
            file = self._open(file_in(self.folder, stored.relative_path))
            return self._archives.dtype(file, stored.offset, stored.length)
        except _UNREADABLE as error:
            raise self._unreadable(key, error) from None

    def common(self) -> dict[str, Any]:
        """What the checkpoint holds beside the tensors: in common.pt, or since megatron-core 0.19 in an object.

        Raises:
            CheckpointError: it is damaged, or holds more than values.
        """
        place = self.metadata.storage_data.get(MetadataIndex(_COMMON))
        if (self.folder / "common.pt").is_file():
            state = load_saved(self.folder / "common.pt")
        elif place is None:
            return {}
        else:
            (state,) = load_saved(self.folder / place.relative_path, place.offset, place.length)
        return state if isinstance(state, dict) else {}

    def read(self, key: str, *leading: int, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """The part of a tensor at the given indices of its leading axes, those axes dropped.

        Args:
            rows: first and last + 1 along the next axis; all of them by default.
        Raises:
            CheckpointError: no such tensor, or its file is damaged.
        """
        rest = list(WeightsReader.shape(self, key)[len(leading) :])  # as it is stored, whatever a subclass says
        start, stop = rows or (0, rest[0])
        rest[0] = stop - start
        offset = (*leading, start, *(0 for _ in rest[1:]))
        size = (*(1 for _ in leading), *rest)
        local = ChunkStorageMetadata(torch.Size(offset), torch.Size(size))
        chunks = self._chunks(key, len(leading)).get(leading, self.tensors[key].chunks)
        near = TensorStorageMetadata(self.tensors[key].properties, self.tensors[key].size, chunks)
        items = create_read_items_for_chunk_list(self.prefix + key, near, [local])
        if sum(item.lengths.numel() for item in items) != local.sizes.numel():
            raise CheckpointError(f"{self.folder} lacks a part of {key}: make the checkpoint again.")
        try:
            parts = [self._read(item) for item in items]
        except _UNREADABLE as error:
            raise self._unreadable(key, error) from None
        if len(parts) == 1:
            return parts[0].reshape(rest)
        whole = torch.empty(size, dtype=self.dtype(key))
        for item, part in zip(items, parts, strict=True):
            whole[region(item.dest_offsets, item.lengths)] = part
        return whole.reshape(rest)

    def _read(self, item: ReadItem) -> torch.Tensor:
        """The part of a stored chunk that the item names."""
        stored = self.metadata.storage_data[item.storage_index]
        file = self._open(file_in(self.folder, stored.relative_path))
        return self._archives.read(file, stored.offset, stored.length, item.storage_offsets, item.lengths)

    def _unreadable(self, key: str, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self.folder}: {key} cannot be read ({one_line(error)}): make the checkpoint again.")

    def _chunks_by_leading(self, key: str, axes: int) -> dict[tuple[int, ...], list[ChunkStorageMetadata]]:
        """Chunks by their indices along the stacked axes, for look-up; empty where a chunk spans several indices."""
        chunks: dict[tuple[int, ...], list[ChunkStorageMetadata]] = defaultdict(list)
        for chunk in self.tensors[key].chunks:
            if set(chunk.sizes[:axes]) - {1}:
                return {}
            chunks[tuple(chunk.offsets[:axes])].append(chunk)
        return dict(chunks)
