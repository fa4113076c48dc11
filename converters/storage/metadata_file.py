"""`.metadata` of a torch.distributed checkpoint as torch's own types, after each field has been checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from common.errors import CheckpointError
from converters.storage.safe_pickle import Record, RefusedError, load_records, name_of, shown

# A model of 120b has 5 MB when imported, and some tens when trained in full on many ranks.
LARGEST = 2**28


def read_metadata(file: Path) -> Metadata:
    """What a `.metadata` file says, but for the writer's plans.

    Raises:
        CheckpointError: it is damaged, too large, or names or does what no such file does.
    """
    if (size := file.stat().st_size) > LARGEST:
        raise CheckpointError(f"{file} has {size:,} bytes, as no checkpoint's has: make the checkpoint again.")
    try:
        return _metadata(load_records(file.read_bytes()))
    except RefusedError as error:
        raise CheckpointError(
            f"{file} {error}: that could run commands of whoever wrote it, and no checkpoint needs it; nothing of it "
            "was run. Get the checkpoint again from a source that you trust, or import or train it again."
        ) from None
    except (ValueError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{file} is damaged ({shown(str(error))}): import or train it again.") from None


def _fields(record: Any, *names: str) -> dict[str, Any]:
    if not isinstance(record, Record) or record.kind.name not in names or type(record.state or {}) is not dict:
        raise ValueError(f"{name_of(record)} stands where {names[0]} belongs")
    return record.state or {}  # type: ignore[return-value]


def _metadata(record: Any) -> Metadata:
    fields = _fields(record, "Metadata", "MCoreMetadata")
    stored = {_a(str, key): _stored(value) for key, value in _a(dict, fields["state_dict_metadata"]).items()}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for key, value in _a(dict, fields["storage_data"]).items():
        index = _index(_fields(key, "MetadataIndex"))
        if index in storage:
            raise ValueError(f"{shown(index.fqn)} stands in it twice")
        storage[index] = _place(_fields(value, "_StorageInfo"))
    return Metadata(stored, None, storage)


def _stored(record: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    fields = _fields(record, "TensorStorageMetadata", "BytesStorageMetadata")
    if record.kind.name == "BytesStorageMetadata":
        return BytesStorageMetadata()
    size, chunks, properties = _a(torch.Size, fields["size"]), [], fields["properties"]
    for each in _a(list, fields["chunks"]):
        chunk = _fields(each, "ChunkStorageMetadata")
        offsets, sizes = _a(torch.Size, chunk["offsets"]), _a(torch.Size, chunk["sizes"])
        if not len(offsets) == len(sizes) == len(size):
            raise ValueError("a chunk has other axes than its tensor")
        chunks.append(ChunkStorageMetadata(offsets, sizes))
    if not isinstance(properties, Record) or properties.kind.name != "TensorProperties" or not properties.state:
        raise ValueError("a tensor has no properties")
    state = properties.state
    dtype = _a(torch.dtype, state[0] if isinstance(state, tuple) else state["dtype"])
    return TensorStorageMetadata(TensorProperties(dtype=dtype), size, chunks)


def _index(fields: dict[str, Any]) -> MetadataIndex:
    offset, index = fields.get("offset"), fields.get("index")
    offset, index = offset if offset is None else _a(torch.Size, offset), index if index is None else _a(int, index)
    return MetadataIndex(_a(str, fields["fqn"]), offset, index)


def _place(fields: dict[str, Any]) -> _StorageInfo:
    name, offset, length = _a(str, fields["relative_path"]), _a(int, fields["offset"]), _a(int, fields["length"])
    if name in ("", ".", "..") or set(name) & {"/", "\0"}:
        raise RefusedError(f"names the file {shown(name)}, outside of its folder")
    if offset < 0 or length < 0 or fields.get("transform_descriptors"):
        raise ValueError(f"{shown(name)} is stored in a way that megatron-core does not write")
    return _StorageInfo(name, offset, length)


def _a(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{name_of(value)} stands where a {kind.__name__} belongs")
    return value
