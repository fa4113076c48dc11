"""Read a checkpoint of NeMo or Megatron-Bridge, at whatever layout it was saved, one part at a time."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from common.errors import CheckpointError
from converters.mapping import BLOCKS, SCALES, TABLE, Entry, Place
from converters.nemo_folder import MegatronFolder
from converters.storage.weights_reader import WeightsReader
from modeling.hf_config import GptOssConfig
from modeling.mxfp4 import dequantize
from modeling.mxfp4_on_device import as_bf16


class NemoReader:
    """Lazy view of a checkpoint's tensors; expert matrices that are packed as MXFP4 are decoded when they are read.

    Raises:
        CheckpointError: the folder is no checkpoint of either, or damaged.
    """

    def __init__(self, checkpoint: Path) -> None:
        folder = MegatronFolder.find(checkpoint)
        self.weights = WeightsReader(folder.weights, folder.prefix)

    @cached_property
    def packed(self) -> bool:
        """Whether the experts are stored as MXFP4 blocks and scales, by the keys."""
        return any(entry.nemo + BLOCKS in self.weights.tensors for entry in TABLE if entry.is_expert_matrix)

    def check(self, config: GptOssConfig, source: Path) -> None:
        """Compare keys and shapes with those of a model.

        Args:
            source: the file that `config` was read from, for the message.
        Raises:
            CheckpointError: a tensor is missing, of another shape, or unknown.
        """
        expected = {key: shape for entry in TABLE for key, shape in entry.stored(config, packed=self.packed).items()}
        if expected.keys() - self.weights.tensors.keys() and self._has_single_layers():
            raise CheckpointError(
                f"{self.weights.folder} holds each layer's tensors under names of their own (singleton_local_shards): "
                "save it again without that."
            )
        for key, shape in expected.items():
            stored = self.weights.shape(key)
            # tensor parallelism pads the vocabulary to a multiple of its size
            padded = shape[0] == config.vocab_size and len(shape) == 2 and stored[0] > shape[0]
            if stored[padded:] != shape[padded:]:
                raise CheckpointError(
                    f"{key} has shape {stored}, {source} says {shape}: the two are not of one model, import it again."
                )
        unknown = [key for key in self.weights.tensors if key not in expected and "_extra_state" not in key]
        if unknown:
            raise CheckpointError(
                f"{self.weights.folder} holds tensors that gpt-oss has not, such as {unknown[0]}: "
                "name a checkpoint of gpt-oss."
            )

    def _has_single_layers(self) -> bool:
        """Whether Megatron saved layers one by one, by its own note."""
        metadata = self.weights.common().get("content_metadata")
        return isinstance(metadata, dict) and bool(metadata.get("singleton_local_shards"))

    def dtype(self, entry: Entry, layer: int | None = None) -> torch.dtype:
        """Dtype of a tensor, or of what one layer stores of it; MXFP4 decodes to bf16."""
        if self._is_packed(entry):
            return torch.bfloat16
        if layer is None or not entry.per_layer:
            return self.weights.dtype(entry.nemo)
        return self.weights.dtype(entry.nemo, layer, *([0] if entry.per_expert else []))

    def read(self, entry: Entry, place: Place) -> torch.Tensor:
        """A part of a tensor.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        if not self._is_packed(entry):
            return self.weights.read(entry.nemo, *place.leading, rows=place.rows)
        try:
            bits = dequantize(self.packed_part(entry, place, BLOCKS), self.packed_part(entry, place, SCALES))
        except CheckpointError as error:
            raise CheckpointError(f"{self.weights.folder}: {entry.nemo}{list(place.leading)}: {error}") from None
        return as_bf16(bits)

    def packed_part(self, entry: Entry, place: Place, end: str) -> np.ndarray:
        """uint8 blocks (out, in/32, 16) or scales (out, in/32) of one packed expert, rows in Megatron's order.

        Args:
            end: `BLOCKS` or `SCALES`.
        """
        return self.weights.read(entry.nemo + end, *place.leading).numpy()

    def _is_packed(self, entry: Entry) -> bool:
        return self.packed and entry.is_expert_matrix
