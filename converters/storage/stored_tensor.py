"""One tensor in a safetensors file, of which parts are read when they are asked for."""

from __future__ import annotations

import torch

from common.errors import CheckpointError
from common.foreign import parse_json
from converters.storage.direct_io import DirectFile

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8}


class StoredTensor:
    """A tensor that is read, not mapped: every mapped page costs a fault, and counts as memory of this process."""

    def __init__(self, file: DirectFile, start: int, stored: str, shape: tuple[int, ...]) -> None:
        self._file = file
        self._start = start
        self._stored = stored
        self.shape = shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tensor.

        Raises:
            CheckpointError: a dtype in which no gpt-oss checkpoint is stored.
        """
        if self._stored not in DTYPES:
            raise CheckpointError(
                f"{self._file.path} holds the dtype {self._stored}, which is not read: "
                "convert it to bf16 or fp32 first."
            )
        return DTYPES[self._stored]

    def __getitem__(self, rows: int | slice) -> torch.Tensor:
        """One row along the first axis, which drops it, or neighbouring rows.

        Raises:
            CheckpointError: the file ends before them.
        """
        first, last, _ = (slice(rows, rows + 1) if isinstance(rows, int) else rows).indices(self.shape[0])
        size = torch.Size(self.shape[1:]).numel() * self.dtype.itemsize
        data = self._file.read(self._start + first * size, (last - first) * size)
        if len(data) < (last - first) * size:
            raise CheckpointError(f"{self._file.path} is truncated or damaged: fetch it again.")
        shape = self.shape[1:] if isinstance(rows, int) else (last - first, *self.shape[1:])
        return torch.from_numpy(data).view(self.dtype).reshape(shape)


def stored_tensors(file: DirectFile) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file whose header has been checked.

    Raises:
        ValueError: a tensor's name stands in it twice.
    Source: the safetensors format, https://huggingface.co/docs/safetensors: length, JSON header, data.
    """
    length = int.from_bytes(file.read(0, 8), "little")
    header = parse_json(file.read(8, length).tobytes())
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(file, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
    }
