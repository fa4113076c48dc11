"""Weights of NeMo and Megatron-Bridge on disk (torch.distributed.checkpoint), written piece by piece.

No model is built and torch.distributed is not initialised. A tensor of the table is stored as one chunk for each layer
(and expert), which is what lets Megatron load it at any TP, EP and PP.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.utils.serialization import config as serialization

from common.artifacts import FINISHED, write_bytes
from converters.storage.direct_io import WriteStream
from converters.storage.pool import run_all

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
