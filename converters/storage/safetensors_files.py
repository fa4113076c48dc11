"""Safetensors of one model: files and index read lazily and checked; files written piece by piece at their places."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from common.artifacts import write_text
from common.errors import CheckpointError
from common.foreign import file_in, read_json
from common.values import one_line
from converters.storage.direct_io import DirectFile
from converters.storage.pool import run_all
from converters.storage.stored_tensor import DTYPES, StoredTensor, stored_tensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


# ---- reading ------------------------------------------------------------------------------------------------------


class SafetensorsReader:
    """Lazy view of all tensors of a folder, or of one file.

    Args:
        cached: read through the page cache (see DirectFile).
    Raises:
        CheckpointError: a file is missing or damaged, or files and index disagree.
    """

    def __init__(self, path: Path, *, cached: bool = False) -> None:
        self._cached = cached
        self.folder = path if path.is_dir() else path.parent
        self._single = None if path.is_dir() else path.name
        self._opened: dict[str, dict[str, StoredTensor]] = {}
        self.file_of = self._find()

    @cached_property
    def files(self) -> list[Path]:
        """The files that hold tensors."""
        return [self.folder / name for name in sorted(set(self.file_of.values()))]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.slice(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor.

        Raises:
            CheckpointError: a dtype in which no gpt-oss checkpoint is stored.
        """
        return self.slice(name).dtype

    def metadata(self) -> dict[str, str]:
        """What the files say of themselves, beside their tensors."""
        found: dict[str, str] = {}
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                found |= file.metadata() or {}
        return found

    def slice(self, name: str) -> StoredTensor:
        """A tensor that is read when it is indexed.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if name not in self.file_of:
            raise CheckpointError(f"{self.folder} lacks the tensor {name}: fetch the model again.")
        return self._open(self.file_of[name])[name]

    def _find(self) -> dict[str, str]:
        if self._single:
            return dict.fromkeys(self._open(self._single).keys(), self._single)
        if file_in(self.folder, INDEX).is_file():
            files = self._read_index()
        elif file_in(self.folder, SINGLE).is_file():
            files = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        else:
            raise CheckpointError(f"{self.folder} holds neither {INDEX} nor {SINGLE}: fetch the model again.")
        if extra := sorted({file.name for file in self.folder.glob("*.safetensors")} - set(files.values())):
            raise CheckpointError(f"{self.folder / extra[0]} belongs to no index: remove it, or fetch the model again.")
        return files

    def _read_index(self) -> dict[str, str]:
        index = self.folder / INDEX
        try:
            content = read_json(self.folder, INDEX)
            weight_map = {str(name): str(file) for name, file in content["weight_map"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged ({one_line(error)}): fetch it again.") from None
        for file in sorted(set(weight_map.values())):
            present = set(self._open(file).keys())
            named = {name for name, where in weight_map.items() if where == file}
            if missing := sorted(named - present):
                raise CheckpointError(
                    f"{self.folder / file} lacks {missing[0]}, which {INDEX} says it holds: download it again."
                )
            if extra := sorted(present - named):
                where = f"{weight_map[extra[0]]} for it" if extra[0] in weight_map else "nothing of it"
                raise CheckpointError(
                    f"{self.folder / file} holds {extra[0]}, but {INDEX} names {where}: download it again."
                )
        return weight_map

    def _open(self, name: str) -> dict[str, StoredTensor]:
        if name not in self._opened:
            path = file_in(self.folder, name)
            try:
                with safe_open(path, framework="pt"):  # the library checks the header
                    self._opened[name] = stored_tensors(DirectFile(path, cached=self._cached))
            except FileNotFoundError:
                raise CheckpointError(f"{path} is missing: fetch the model again.") from None
            except (SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(f"{path} is truncated or damaged ({one_line(error)}): fetch it again.") from None
        return self._opened[name]


# ---- writing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Slab:
    """Contiguous data, and where in its tensor it belongs: at its index along the first axis."""

    tensor: str
    index: int
    data: torch.Tensor | np.ndarray


@dataclass(frozen=True)
class Group:
    """Tensors that stand in one file, and the jobs that produce all their slabs."""

    tensors: tuple[TensorSpec, ...]
    jobs: tuple[Callable[[], Sequence[Slab]], ...]

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


def write_file(
    path: Path,
    groups: Sequence[Group],
    progress: Callable[[int, int], None] = lambda size, jobs: None,
    finishing: Callable[[], None] = lambda: None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one file, each thread with the slabs of one job in memory, and flush it to the disk.

    The file gets its name when it is whole; where a file of that name exists, nothing is done.

    Args:
        progress: called with bytes and number of jobs after they were written.
        finishing: called when all is written, before the file gets its name.
        metadata: of the file, beside the format.
    Source: the safetensors format, https://huggingface.co/docs/safetensors: length, JSON header, data.
    """
    if path.is_file():
        progress(sum(group.bytes for group in groups), sum(len(group.jobs) for group in groups))
        return
    header, starts = _header([tensor for group in groups for tensor in group.tensors], metadata or {})
    strides = {t.name: t.bytes // t.shape[0] for group in groups for t in group.tensors}
    temporary = path.with_name(path.name + ".tmp")
    file = DirectFile(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.truncate(temporary, len(header) + sum(group.bytes for group in groups))
    file.write(header, 0)

    def write(job: Callable[[], Sequence[Slab]]) -> None:
        size = 0
        for slab in job():
            data = _bytes(slab.data)
            file.write(data, len(header) + starts[slab.tensor] + slab.index * strides[slab.tensor])
            size += len(data)
        progress(size, 1)

    run_all((lambda job=job: write(job)) for group in groups for job in group.jobs)
    os.fsync(file.fileno())
    finishing()
    temporary.rename(path)


def write_sharded(
    folder: Path,
    groups: Sequence[Group],
    shard_size: int,
    progress: Callable[[int, int], None] = lambda size, jobs: None,
    finishing: Callable[[], None] = lambda: None,
) -> None:
    """Write `model-0000X-of-0000N.safetensors` and their index; files of an interrupted run are kept.

    Args:
        shard_size: largest file in bytes, but for a group that is larger itself.
        finishing: called before each file gets its name.
    """
    shards = list(_shards(groups, shard_size))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / name, shard, progress, finishing)
        weight_map |= {tensor.name: name for group in shard for tensor in group.tensors}
    total = sum(group.bytes for group in groups)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _shards(groups: Sequence[Group], shard_size: int) -> Iterator[list[Group]]:
    shard: list[Group] = []
    for group in groups:
        if shard and sum(g.bytes for g in shard) + group.bytes > shard_size:
            yield shard
            shard = []
        shard.append(group)
    yield shard


def _header(tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    starts: dict[str, int] = {}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    # readers want alignment: larger items first, as the safetensors library orders them
    position = 0
    for tensor in sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name)):
        starts[tensor.name] = position
        end = position + tensor.bytes
        entries[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts


def _bytes(data: torch.Tensor | np.ndarray) -> memoryview:
    array = data.contiguous().view(torch.uint8).numpy() if isinstance(data, torch.Tensor) else data
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
