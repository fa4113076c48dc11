"""Read a Megatron torch_dist folder: its tensors one part at a time, and what stands beside them."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache, cached_property, lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from common.errors import CheckpointError
from common.foreign import file_in
from common.values import one_line
from converters.storage.checked_folder import load_saved
from converters.storage.direct_io import DirectFile
from converters.storage.metadata_file import read_metadata
from converters.storage.nemo_weights import PREFIX
from converters.storage.torch_archives import TorchArchives, region

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
