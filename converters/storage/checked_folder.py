"""A checkpoint's `weights/` looked through before Megatron or NeMo reads it, whose readers run what a pickle names."""

from __future__ import annotations

import json
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from common.errors import CheckpointError
from common.foreign import file_in
from converters.storage.metadata_file import read_metadata
from converters.storage.safe_pickle import shown

# Of an archive that holds no tensor of the model: states of the training, and of modules that have some.
LARGEST = 2**28
_BACKENDS = {"sharded_backend": "torch_dist", "common_backend": "torch"}
_REMEDY = "get the checkpoint again from a source that you trust, or import or train it again"


def ensure_safe(weights: Path) -> None:
    """Check that nothing in `weights/` runs code when it is loaded; reads no tensor of the model.

    torch 2.13 unpickles `.metadata` (`FileSystemReader.read_metadata`) and every entry that is no tensor
    (`DefaultLoadPlanner.load_bytes`, weights_only=False) without a restriction.

    Raises:
        CheckpointError: it could, or the folder is no torch_dist checkpoint.
    """
    if not file_in(weights, ".metadata").is_file():
        raise CheckpointError(f"{weights} holds no NeMo weights (.metadata is missing): name a NeMo checkpoint.")
    _check_format(weights / "metadata.json")
    metadata = read_metadata(weights / ".metadata")
    common = file_in(weights, "common.pt")
    if common.is_file():
        _check_states(load_saved(common), str(common))
    for name in {place.relative_path for place in metadata.storage_data.values()}:
        file_in(weights, name)  # Megatron follows links
    harmless: set[bytes] = set()  # a model of 120b has thousands of empty states, all equal
    for index, place in metadata.storage_data.items():
        if index.offset is not None and isinstance(metadata.state_dict_metadata.get(index.fqn), TensorStorageMetadata):
            continue  # torch loads a tensor's with weights_only=True
        content = _read(file_in(weights, place.relative_path), place.offset, place.length)
        name = f"{weights}: {shown(index.fqn)}"
        if content not in harmless:
            value = _load(content, name)
            _check_states({index.fqn: value}, name)
            if _is_empty(value):
                harmless.add(content)


def load_saved(file: Path, start: int = 0, size: int | None = None) -> Any:
    """What torch.save wrote to a file, or to a part of one, as long as that is plain values and tensors.

    Raises:
        CheckpointError: it holds anything else, or is damaged; nothing of it was run.
    """
    try:
        size = file.stat().st_size if size is None else size
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}): get the checkpoint again.") from None
    return _load(_read(file, start, size), str(file))


def _read(file: Path, start: int, size: int) -> bytes:
    if size > LARGEST:
        raise CheckpointError(f"{file} holds a state of {size:,} bytes, as no training's has: {_REMEDY}.")
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            return stream.read(size)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}): make the checkpoint again.") from None


def _check_format(file: Path) -> None:
    """Megatron's older backends (zarr) keep pickles in files of their own; nothing of this package writes them."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        backends = {name: said.get(name, wanted) for name, wanted in _BACKENDS.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{file} is missing or damaged: make the checkpoint again.") from None
    if backends != _BACKENDS:
        raise CheckpointError(f"{file} names a format that is not torch_dist: save the checkpoint as torch_dist.")


def _load(content: bytes, name: str) -> Any:
    """What torch.save wrote, as far as it holds plain values and tensors."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            if sum(each.file_size for each in archive.infolist()) > len(content):
                raise CheckpointError(f"{name} unpacks to more than it is: {_REMEDY}.")
        return torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        said = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "torch refuses it")
        raise CheckpointError(
            f"{name} holds more than values and tensors ({shown(said)}): that could run commands of whoever "
            f"wrote it, and nothing of it was run; {_REMEDY}."
        ) from None
    except (
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        struct.error,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name} is damaged ({shown(reason)}): make the checkpoint again.") from None


def _check_states(value: Any, name: str) -> None:
    """Refuse states of modules that hold bytes: Transformer Engine 2 (`set_extra_state`) unpickles them."""
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if "_extra_state" in str(key) and not _is_empty(inner):
            raise CheckpointError(
                f"{name} holds a module's state of FP8, which Transformer Engine would unpickle, and with it whatever "
                f"its writer put there: {_REMEDY}, without FP8."
            )
        _check_states(inner, name)


def _is_empty(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_empty(each) for each in value)
    return value is None or (isinstance(value, torch.Tensor) and not value.numel())
