"""NeMo 2 weights on disk (`weights/`, torch.distributed.checkpoint) read and written piece by piece.

No model is built and torch.distributed is not initialised. A tensor of the table is stored as one chunk for each layer
(and expert), which is what lets Megatron load it at any TP, EP and PP.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_saver import save

from errors import CheckpointError

PREFIX = "module."
# What megatron-core's dist_checkpointing looks for beside the tensors.
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@dataclass(frozen=True)
class Piece:
    """A part of a stacked tensor that is produced when its bytes are due."""

    key: str
    shape: tuple[int, ...]
    """Of the whole stacked tensor."""
    offset: tuple[int, ...]
    size: tuple[int, ...]
    dtype: torch.dtype
    produce: Callable[[], torch.Tensor]


def write_weights(
    folder: Path,
    pieces: Sequence[Piece],
    empty_states: Sequence[str] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write `folder` as Megatron's torch_dist checkpoint; one piece is in memory at a time.

    Args:
        empty_states: keys of module states that Megatron asks for and that hold nothing.
        progress: called with the bytes of each piece after it was produced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    planner = _PieceSavePlanner(pieces, empty_states, progress)
    # One thread: pieces are produced in the order of the plan, so that at most one is held.
    writer = FileSystemWriter(folder, single_file_per_rank=True, thread_count=1)
    save({}, storage_writer=writer, planner=planner, no_dist=True)
    torch.save({}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(FORMAT))


class _PieceSavePlanner(SavePlanner):
    def __init__(self, pieces: Sequence[Piece], empty_states: Sequence[str], progress: Callable[[int], None]) -> None:
        self.progress = progress
        self.empty_states = empty_states
        self.pieces = {MetadataIndex(piece.key, torch.Size(piece.offset)): piece for piece in pieces}

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None: ...

    def create_local_plan(self) -> SavePlan:
        states = [WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO) for key in self.empty_states]
        return SavePlan([*states, *(self._item(index, piece) for index, piece in self.pieces.items())])

    def _item(self, index: MetadataIndex, piece: Piece) -> WriteItem:
        chunk = ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.size))
        data = TensorWriteData(chunk, TensorProperties(dtype=piece.dtype), torch.Size(piece.shape))
        return WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        tensors: dict[str, Any] = {key: BytesStorageMetadata() for key in self.empty_states}
        for index, piece in self.pieces.items():
            stored = tensors.setdefault(
                index.fqn, TensorStorageMetadata(TensorProperties(dtype=piece.dtype), torch.Size(piece.shape), [])
            )
            stored.chunks.append(ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.size)))
        return all_plans, Metadata(tensors)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            buffer = io.BytesIO()
            torch.save([None], buffer)  # megatron-core keeps a list of the objects under a key
            return buffer
        piece = self.pieces[MetadataIndex(write_item.index.fqn, write_item.index.offset)]
        value = piece.produce().reshape(piece.size)
        self.progress(value.numel() * value.element_size())
        return value


class WeightsReader:
    """Random access to the tensors of a `weights/` folder, at whatever layout they were saved.

    Raises:
        CheckpointError: the folder is no torch_dist checkpoint, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / ".metadata").is_file():
            raise CheckpointError(f"{folder} holds no NeMo weights (.metadata is missing): name a NeMo checkpoint.")
        self._reader = FileSystemReader(folder)
        try:
            self.metadata = self._reader.read_metadata()
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError) as error:
            raise CheckpointError(f"{folder}/.metadata is damaged ({error}): import or train it again.") from None
        self._reader.set_up_storage_reader(self.metadata, is_coordinator=True)

    @cached_property
    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """Stored tensors of the model by their key below `module.`; optimizer state is left out."""
        stored = self.metadata.state_dict_metadata
        return {
            key.removeprefix(PREFIX): value
            for key, value in stored.items()
            if key.startswith(PREFIX) and isinstance(value, TensorStorageMetadata)
        }

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of the whole stacked tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if key not in self.tensors:
            raise CheckpointError(f"{self.folder} lacks {PREFIX}{key}: it is no gpt-oss checkpoint, or incomplete.")
        return tuple(self.tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        """Stored dtype of a tensor."""
        return self.tensors[key].properties.dtype

    def read(self, key: str, *leading: int) -> torch.Tensor:
        """The part of a tensor at the given indices of its leading axes, those axes dropped.

        Raises:
            CheckpointError: no such tensor, or its file is damaged.
        """
        shape = self.shape(key)
        rest = shape[len(leading) :]
        offset = (*leading, *(0 for _ in rest))
        size = (*(1 for _ in leading), *rest)
        target = torch.empty(size, dtype=self.dtype(key))
        local = ChunkStorageMetadata(torch.Size(offset), torch.Size(size))
        items = create_read_items_for_chunk_list(PREFIX + key, self.tensors[key], [local])
        try:
            self._reader.read_data(LoadPlan(items), _IntoOneTensor(target)).wait()
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{self.folder}: {key} cannot be read ({error}): make the checkpoint again."
            ) from None
        return target.reshape(rest)


class _IntoOneTensor(LoadPlanner):
    def __init__(self, target: torch.Tensor) -> None:
        self.target = target

    def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None: ...

    def create_local_plan(self) -> LoadPlan:
        return LoadPlan([])

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: Any) -> None: ...

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        ranges: Iterable[tuple[int, int]] = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return self.target[tuple(slice(start, start + length) for start, length in ranges)]

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None: ...
