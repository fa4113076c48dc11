"""A checkpoint of NeMo or Megatron-Bridge as the source of a conversion."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import CheckpointError
from common.foreign import file_in
from converters.mapping import SCALES, Entry, Place
from converters.nemo_folder import MegatronFolder, checkpoint_identity, is_megatron
from converters.nemo_reader import NemoReader
from converters.output_folder import TOKENIZER_FILES, source_files
from converters.storage.safetensors_files import SafetensorsReader
from modeling.hf_config import GptOssConfig, old_fields


class Source:
    """A checkpoint of NeMo or Megatron-Bridge and what a conversion needs besides its weights.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or unknown; or there is no config.json.
    """

    def __init__(self, nemo: Path, like: Path) -> None:
        self.nemo, self.like = nemo, like
        self.reader = NemoReader(nemo)
        folder = MegatronFolder.find(like)
        raw = folder.config if is_megatron(like) else None
        # in the order of precedence: of this package's checkpoint, of a run config, of a Hugging Face folder
        self.config_file = folder.config_file if folder.config_file.is_file() else folder.settings
        if raw is None:
            self.config_file = file_in(like, "config.json")
            if not self.config_file.is_file():
                raise CheckpointError(f"{like} holds no config.json of its model: name the imported base with --like.")
            raw = GptOssConfig.from_file(self.config_file).raw
        self.config = GptOssConfig.from_dict(raw, str(self.config_file))
        self.beside = folder.beside if is_megatron(like) else like
        self.tokenizer = next((f for f in (folder.tokenizer, folder.beside) if (f / "tokenizer.json").is_file()), like)
        self.reader.check(self.config, self.config_file)

    @cached_property
    def config_json(self) -> bytes:
        """Bytes of the model's config.json, in the fields that transformers 4 reads too."""
        raw = self.config.raw
        if self.config_file.suffix == ".json" and old_fields(raw) == raw:
            return self.config_file.read_bytes()
        return (json.dumps(old_fields(raw), indent=2, sort_keys=True) + "\n").encode()

    @property
    def has_scales(self) -> bool:
        """Whether it is known what MXFP4 scales the base had."""
        return self._scales is not None

    @cached_property
    def _scales(self) -> SafetensorsReader | NemoReader | None:
        """Where the MXFP4 scales of the base are: packed with its experts, or beside them as the import kept them."""
        file = MegatronFolder.find(self.like).scales
        if file.is_file():
            return SafetensorsReader(file)
        like = self.reader if self.like == self.nemo else NemoReader(self.like) if is_megatron(self.like) else None
        return like if like is not None and like.packed else None

    def scales(self, entry: Entry, place: Place) -> np.ndarray | None:
        """uint8 (out, in/32), the scales that an expert's matrix had in the base, rows in Hugging Face's order."""
        if self._scales is None:
            return None
        if isinstance(self._scales, NemoReader):
            return self._scales.packed_part(entry, place, SCALES)[entry.rows_in_hf(self.config)]
        assert place.expert is not None
        return self._scales.slice(entry.hf[0].format(layer=place.layer) + SCALES)[place.expert].numpy()

    def identity(self) -> dict[str, Any]:
        """Hashes, sizes and times of the source's files, for the fingerprint of the export."""
        scales = MegatronFolder.find(self.like).scales
        files = [scales, *(self.tokenizer / name for name in TOKENIZER_FILES)]
        return checkpoint_identity(self.nemo) | source_files([self.config_file, *files])
