"""Read a gpt-oss folder, Hugging Face's (MXFP4 or plain), OpenAI's `original/` or Unsloth's, one part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import CheckpointError, ConfigurationError
from common.foreign import file_in, read_json
from common.values import one_line
from converters import openai_layout, single_experts
from converters.mapping import BLOCKS, SCALES, Entry, Place, layers_of
from converters.storage.safetensors_files import SafetensorsReader
from converters.storage.stored_tensor import StoredTensor
from converters.storage.transposition import transpose
from modeling.hf_config import GptOssConfig
from modeling.mxfp4 import BLOCK, NAN_MESSAGE, NAN_SCALE, dequantize
from modeling.mxfp4_on_device import as_bf16


class HfReader:
    """Lazy view of a folder. Every tensor of the table must be there, in its shape, and nothing else may be.

    Args:
        cached: read through the page cache (see DirectFile).
    Raises:
        CheckpointError: a file or tensor is missing, damaged, of another shape or unknown.
        ConfigurationError: config.json is missing or describes no gpt-oss.
    """

    def __init__(self, folder: Path, *, cached: bool = False) -> None:
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is no folder: name one with config.json and *.safetensors, or a Hub id.")
        self.folder = folder
        config = self._openai_config(folder / "config.json")
        self.config = GptOssConfig.from_file(folder) if config is None else config
        self.files = SafetensorsReader(folder, cached=cached)
        self._check()

    @cached_property
    def openai(self) -> bool:
        """Whether this is OpenAI's own layout, by the tensor names."""
        return openai_layout.MARK in self.files.file_of

    @cached_property
    def single(self) -> bool:
        """Whether each expert is a linear layer of its own, by the tensor names."""
        return single_experts.MARK in self.files.file_of

    @cached_property
    def mxfp4(self) -> bool:
        """Whether the experts are stored as MXFP4 blocks and scales, by the tensor names."""
        return any(name.endswith((BLOCKS, ".blocks")) for name in self.files.file_of)

    @cached_property
    def config_json(self) -> dict[str, Any]:
        """config.json in Hugging Face's fields."""
        raw = dict(self.config.raw)
        return raw | {"quantization_config": openai_layout.QUANTIZATION} if self.openai and self.mxfp4 else raw

    @cached_property
    def tokenizer(self) -> Path:
        """The folder with the tokenizer: this one, or the one above `original/`.

        Raises:
            CheckpointError: neither holds one.
        """
        for folder in (self.folder, *([self.folder.parent] if self.openai else [])):
            missing = [n for n in ("tokenizer.json", "tokenizer_config.json") if not file_in(folder, n).is_file()]
            if not missing:
                return folder
        raise CheckpointError(f"{self.folder} lacks its tokenizer ({', '.join(missing)}): copy it there.")

    def dtype(self, entry: Entry, layer: int) -> torch.dtype:
        """Dtype of a tensor of the table; MXFP4 decodes to bf16.

        Raises:
            CheckpointError: it is made of tensors of different dtypes.
        """
        if entry.is_expert_matrix and self.mxfp4:
            return torch.bfloat16
        experts = range(self.config.num_experts) if self.single and entry.per_expert else [None]
        names = [self._at(name.format(layer=layer), expert)[0] for name in entry.hf for expert in experts]
        dtypes = {self.files.dtype(name): name for name in names}
        if len(dtypes) > 1:
            different = " and ".join(dtypes.values())
            raise CheckpointError(f"{self.folder}: {different} have different dtypes: convert them to one.")
        return next(iter(dtypes))

    def read(self, entry: Entry, place: Place) -> torch.Tensor:
        """A part of a Megatron tensor.

        Raises:
            CheckpointError: an MXFP4 scale is NaN.
        """
        if entry.is_expert_matrix and self.mxfp4:
            return self._decoded(entry, place)
        parts = [self._part(entry, name.format(layer=place.layer), place) for name in entry.hf]
        return entry.to_nemo(parts, self.config).contiguous()

    def packed_part(self, entry: Entry, place: Place, end: str) -> np.ndarray:
        """`blocks` or `scales` of one expert, by `BLOCKS` or `SCALES`, rows in Megatron's order.

        Raises:
            CheckpointError: a scale is NaN.
        """
        part = self.blocks(entry, place) if end == BLOCKS else self.scales(entry, place)
        if end == SCALES and part.max() == NAN_SCALE:
            raise CheckpointError(f"{self._named(entry, place)}: {NAN_MESSAGE}")
        return part[entry.rows_in_nemo(self.config)]

    def blocks(self, entry: Entry, place: Place) -> np.ndarray:
        """uint8 (out, in/32, 16), MXFP4 blocks of one expert, rows in Hugging Face's order."""
        assert place.expert is not None
        return self._slice(entry.hf[0].format(layer=place.layer) + BLOCKS)[place.expert].numpy()

    def scales(self, entry: Entry, place: Place) -> np.ndarray:
        """uint8 (out, in/32), MXFP4 scales of one expert, rows in Hugging Face's order."""
        assert place.expert is not None
        return self._slice(entry.hf[0].format(layer=place.layer) + SCALES)[place.expert].numpy()

    def _openai_config(self, file: Path) -> GptOssConfig | None:
        try:
            raw = read_json(self.folder, file.name)
        except (OSError, ValueError):
            return None  # GptOssConfig.from_file says what is wrong
        if not isinstance(raw, dict) or "model_type" in raw or "rope_scaling_factor" not in raw:
            return None
        try:
            return GptOssConfig.from_dict(openai_layout.to_hf_config(raw), str(file))
        except KeyError as error:
            raise ConfigurationError(f"{file} has no field {error.args[0]!r}: fetch the model again.") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigurationError(
                f"{file} holds a field of the wrong kind ({one_line(error)}): fetch the model again."
            ) from None

    def _at(self, name: str, expert: int | None = None) -> tuple[str, tuple[int, int] | None]:
        """The tensor that holds what Hugging Face calls `name`, and which of its rows do; None for all."""
        if self.openai:
            return openai_layout.stored_at(name, self.config)
        single = single_experts.stored_at(name, expert) if self.single else name
        return (single if single in self.files.file_of or expert is not None else name), None

    def _slice(self, name: str) -> StoredTensor:
        return self.files.slice(self._at(name)[0])

    def _decoded(self, entry: Entry, place: Place) -> torch.Tensor:
        """bf16 (out, in) of an MXFP4 expert, whose rows take their places as they are decoded."""
        try:
            bits = dequantize(self.blocks(entry, place), self.scales(entry, place), entry.rows_in_nemo(self.config))
        except CheckpointError as error:
            raise CheckpointError(f"{self._named(entry, place)}: {error}") from None
        return as_bf16(bits)

    def _named(self, entry: Entry, place: Place) -> str:
        return f"{self.folder}: {entry.hf[0].format(layer=place.layer)}, expert {place.expert}"

    def _part(self, entry: Entry, name: str, place: Place) -> torch.Tensor:
        stored, rows = self._at(name, place.expert)
        tensor = self.files.slice(stored)
        if place.expert is not None and not self.single:
            value = tensor[place.expert]
            # Hugging Face multiplies activations from the left, OpenAI stores rows of the output
            return transpose(value) if entry.is_expert_matrix and not self.openai else value
        first, last = place.rows or rows or (0, tensor.shape[0])
        return tensor[first:last]

    def _check(self) -> None:
        if found := single_experts.foreign_layout(self.files.file_of):
            raise CheckpointError(
                f"{self.folder} holds {found}, which are not read: load it with the program that wrote it, save it in "
                "bf16 under the names of transformers' GptOssForCausalLM, and import that."
            )
        names: set[str] = set()
        for entry, layer in layers_of(self.config):
            for name, shape in zip(entry.hf, entry.hf_shapes(self.config), strict=True):
                for tensor, expert, expected in self._expected(entry, name.format(layer=layer), shape):
                    stored, rows = self._at(tensor, expert)
                    actual = self.files.shape(stored)
                    if rows is not None:
                        expected = (self.config.qkv_size, *expected[1:])
                    if actual != expected:
                        raise CheckpointError(
                            f"{self.folder}: {stored} has shape {actual}, config.json says {expected}: "
                            "fetch the model again."
                        )
                    names.add(stored)
        unknown = sorted(set(self.files.file_of) - names)
        if unknown:
            raise CheckpointError(
                f"{self.folder} holds {len(unknown)} tensors that this gpt-oss has not, such as {unknown[0]}: "
                "name a folder as the model's makers or transformers wrote it."
            )

    def _expected(
        self, entry: Entry, name: str, rows: tuple[int, ...]
    ) -> Iterator[tuple[str, int | None, tuple[int, ...]]]:
        """What must be there of a name: names, experts where each has a tensor of its own, and shapes."""
        experts = self.config.num_experts
        if entry.per_expert and self.single:
            yield from ((name, expert, rows) for expert in range(experts))
        elif not entry.is_expert_matrix:
            yield name, None, (experts, *rows) if entry.per_expert else rows
        elif not self.mxfp4:
            yield name, None, (experts, *(rows if self.openai else reversed(rows)))
        else:
            out, width = rows
            if width % BLOCK:
                raise CheckpointError(f"{name}: rows of {width} values do not divide into MXFP4 blocks of {BLOCK}.")
            yield name + BLOCKS, None, (experts, out, width // BLOCK, BLOCK // 2)
            yield name + SCALES, None, (experts, out, width // BLOCK)
