"""Read a Hugging Face gpt-oss folder tensor by tensor, expert by expert; MXFP4 or plain, sharded or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from converters.mapping import TABLE, Entry
from converters.mxfp4 import BLOCK, dequantize
from errors import CheckpointError
from modeling.hf_config import GptOssConfig

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BLOCKS, SCALES = "_blocks", "_scales"


class HfReader:
    """Lazy view of a folder. Every tensor of the table must be there, in its shape, and nothing else may be.

    Raises:
        CheckpointError: a file or tensor is missing, damaged, of another shape or unknown.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is no folder: name one with config.json and *.safetensors, or a Hub id.")
        self.folder = folder
        self.config = GptOssConfig.from_file(folder)
        self._opened: dict[str, Any] = {}
        self._check()

    @cached_property
    def shards(self) -> list[str]:
        """Names of the safetensors files."""
        return sorted(set(self._file_of.values()))

    @cached_property
    def mxfp4(self) -> bool:
        """Whether the experts are stored as MXFP4 blocks and scales; told by the tensor names."""
        return any(name.endswith(BLOCKS) for name in self._file_of)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of the plain tensors; MXFP4 experts decode to bf16."""
        return self._plain("model.norm.weight").dtype

    @cached_property
    def _file_of(self) -> dict[str, str]:
        index = self.folder / INDEX
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text())["weight_map"]
            except (ValueError, KeyError, TypeError):
                raise CheckpointError(f"{index} is damaged: fetch it again.") from None
            for file in sorted(set(weight_map.values())):
                present = set(self._file(file).keys())
                for name in sorted(name for name, where in weight_map.items() if where == file):
                    if name not in present:
                        raise CheckpointError(f"{self.folder / file} lacks {name}, which the index says it holds.")
            return dict(weight_map)
        files = [self.folder / SINGLE] if (self.folder / SINGLE).is_file() else []
        if not files:
            raise CheckpointError(f"{self.folder} holds neither {INDEX} nor {SINGLE}: fetch the model again.")
        return dict.fromkeys(self._file(SINGLE).keys(), SINGLE)

    def _file(self, name: str) -> Any:
        if name not in self._opened:
            path = self.folder / name
            try:
                self._opened[name] = safe_open(path, framework="pt")
            except FileNotFoundError:
                raise CheckpointError(f"{path} is missing: fetch the model again.") from None
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} is truncated or damaged ({error}): fetch it again.") from None
        return self._opened[name]

    def _slice(self, name: str) -> Any:
        if name not in self._file_of:
            raise CheckpointError(f"{self.folder} lacks the tensor {name}: fetch the model again.")
        return self._file(self._file_of[name]).get_slice(name)

    def _plain(self, name: str) -> torch.Tensor:
        return self._slice(name)[:]

    def _check(self) -> None:
        known: set[str] = set()
        for entry in TABLE:
            for layer in range(self.config.num_layers if entry.per_layer else 1):
                for name, shape in zip(entry.hf, entry.hf_shapes(self.config), strict=True):
                    known |= self._check_tensor(entry, name.format(layer=layer), shape)
        unknown = sorted(set(self._file_of) - known)
        if unknown:
            raise CheckpointError(f"{self.folder} holds {len(unknown)} tensors that gpt-oss has not, as {unknown[0]}.")

    def _check_tensor(self, entry: Entry, name: str, rows: tuple[int, ...]) -> set[str]:
        experts = self.config.num_experts
        if not (entry.per_expert and len(rows) == 2):
            expected = {name: (experts, *rows) if entry.per_expert else rows}
        elif self.mxfp4:
            out, width = rows
            if width % BLOCK:
                raise CheckpointError(f"{name}: rows of {width} values do not divide into MXFP4 blocks of {BLOCK}.")
            scales = (experts, out, width // BLOCK)
            expected = {name + BLOCKS: (*scales, BLOCK // 2), name + SCALES: scales}
        else:
            expected = {name: (experts, rows[1], rows[0])}
        for tensor, shape in expected.items():
            found = tuple(self._slice(tensor).get_shape())
            if found != shape:
                raise CheckpointError(f"{self.folder}: {tensor} has shape {found}, config.json says {shape}.")
        return set(expected)

    def part(self, name: str, expert: int | None = None) -> torch.Tensor:
        """One tensor of the table, or one expert's rows (out, in) of it; MXFP4 is decoded to bf16.

        Args:
            name: as in `Entry.hf`, the layer's number filled in.
        """
        if expert is None:
            return self._plain(name)
        if name in self._file_of:
            value = self._slice(name)[expert]
            return value.T if value.dim() == 2 else value
        blocks, scales = (self._slice(name + kind)[expert].numpy() for kind in (BLOCKS, SCALES))
        try:
            return torch.from_numpy(dequantize(blocks, scales).view(np.int16)).view(torch.bfloat16)
        except CheckpointError as error:
            raise CheckpointError(f"{self.folder}: {name}, expert {expert}: {error}") from None

    def nemo_part(self, entry: Entry, layer: int, expert: int | None) -> torch.Tensor:
        """One layer's (expert's) tensor of the Megatron side."""
        parts = [self.part(name.format(layer=layer), expert) for name in entry.hf]
        return entry.to_nemo(parts, self.config).contiguous()


def pieces(entry: Entry, config: GptOssConfig) -> Iterator[tuple[int, int | None]]:
    """(layer, expert) of every piece of a Megatron tensor, in storage order; None where there is no E axis."""
    for layer in range(config.num_layers if entry.per_layer else 1):
        if entry.per_expert:
            for expert in range(config.num_experts):
                yield layer, expert
        else:
            yield layer, None
