"""Hugging Face → NeMo, one piece in memory at a time."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from common import artifacts
from common.errors import CheckpointError, ConfigurationError
from common.progress import Progress, TensorCounter, quiet
from converters.extra_states import empty_states
from converters.hf_reader import HfReader
from converters.hub import find
from converters.mapping import SCALES, Entry, Place, layers_of, places
from converters.nemo_context import write_context
from converters.nemo_folder import CONFIG, SCALES_FILE, TOKENIZER
from converters.output_folder import (
    GENERATION,
    LICENSES,
    TOKENIZER_FILES,
    copy_files,
    copy_tokenizer,
    is_done,
    resumable_folder,
    source_files,
)
from converters.storage.nemo_weights import PREFIX, Piece, write_weights
from converters.storage.safetensors_files import Group, Slab, TensorSpec, write_file
from modeling.hf_config import old_fields
from modeling.mxfp4 import BLOCK

_SHA256 = re.compile("[0-9a-f]{64}")


def import_checkpoint(
    hf: str | Path, nemo: Path, progress: Progress = quiet, *, experts: Literal["bf16", "mxfp4"] = "bf16"
) -> Path:
    """Write the NeMo checkpoint of a gpt-oss: weights/, context/, the MXFP4 scales where there are any, a manifest.

    Does nothing when `nemo` is whole and was made from these very files; goes on where a killed run stopped.

    Args:
        hf: a folder (Hugging Face's layout or OpenAI's `original/`) or a Hub id.
        progress: called after every tensor.
        experts: "bf16" decodes MXFP4, for NeMo as it is and for training in full; "mxfp4" keeps blocks and scales,
            a third of the size, for LoRA with this package's models.
    Raises:
        CheckpointError: the source is missing, damaged, or lacks its tokenizer; or the disk is too small.
        ConfigurationError: experts are to stay MXFP4 which are none.
    """
    reader = HfReader(find(hf), cached=True)  # of which the hashes are computed meanwhile
    packed, tokenizer = experts == "mxfp4", reader.tokenizer
    if packed and not reader.mxfp4:
        raise ConfigurationError(f"{hf} holds no MXFP4 experts that could stay so: import it with bf16 experts.")
    inputs = _inputs(reader, packed=packed)
    if is_done(nemo, inputs):
        return nemo
    pieces = [
        piece for entry, layer in layers_of(reader.config) for piece in _pieces(reader, entry, layer, packed=packed)
    ]
    scales = _scales(reader) if reader.mxfp4 and not packed else []
    total = sum(piece.bytes for piece in pieces) + sum(group.bytes for group in scales)
    jobs = len(pieces) + sum(len(group.jobs) for group in scales)
    count = TensorCounter("import", total, jobs, progress)
    with resumable_folder(nemo, "nemo-checkpoint", inputs, total) as (folder, details):
        hashes = _Hashes(reader.files.files)
        if scales:
            write_file(folder / SCALES_FILE, scales, count)
        write_weights(folder / "weights", pieces, empty_states(reader.config, packed=packed), count)
        context = folder / "context"
        copy_tokenizer(tokenizer, context / TOKENIZER)
        copy_files((GENERATION, *LICENSES), reader.folder, context)
        _write_config(reader, context / CONFIG)
        write_context(context, reader.config, packed_experts=packed)
        details |= {"source": _source(hf), "sha256": hashes.result()}
    return nemo


def has_mxfp4(hf: str | Path) -> bool:
    """Whether a model's experts are published as MXFP4."""
    return HfReader(find(hf)).mxfp4


def is_imported(hf: str | Path, nemo: Path) -> bool:
    """Whether `nemo` is whole and was made from these very files with bf16 experts."""
    return is_done(nemo, _inputs(HfReader(find(hf)), packed=False))


def _source(hf: str | Path) -> str:
    """A Hub id as it is, a folder with its whole path, so that neither is taken for the other elsewhere."""
    return str(Path(hf).absolute()) if Path(hf).exists() else str(hf)


def _inputs(reader: HfReader, *, packed: bool) -> dict[str, Any]:
    """All that decides what an import writes."""
    small = [reader.folder / name for name in ("config.json", GENERATION)]
    small += [reader.tokenizer / name for name in TOKENIZER_FILES]
    inputs = {"kind": "import", "files": source_files([*small, *reader.files.files])}
    inputs |= {"experts": "mxfp4"} if packed else {}
    # imports of before kept such a folder's files, which nothing here could use
    return inputs | ({"fields": "transformers 4"} if old_fields(reader.config.raw) != reader.config.raw else {})


class _Hashes:
    """SHA-256 of files, computed in the background while the files are converted."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._sums: dict[str, str] = {}
        self._thread = threading.Thread(target=self._hash, args=(files,), daemon=True)
        self._thread.start()

    def _hash(self, files: Sequence[Path]) -> None:
        for file in files:
            self._sums[file.name] = artifacts.hash_file(file)

    def result(self) -> dict[str, str]:
        """Hash by file name.

        Raises:
            CheckpointError: a file is not what the Hub said it is.
        """
        self._thread.join()
        for file in self._files:
            # the Hub's cache names a large file by its hash, and links to it
            named = file.resolve().name
            if _SHA256.fullmatch(named) and named != self._sums[file.name]:
                raise CheckpointError(f"{file} is damaged, its content is not what the Hub sent: remove {named} there.")
        return self._sums


def _pieces(reader: HfReader, entry: Entry, layer: int, *, packed: bool) -> list[Piece]:
    if packed and entry.is_expert_matrix:
        return [piece for place in places(entry, reader.config, layer) for piece in _packed(reader, entry, place)]
    leading, shape = entry.leading(reader.config), entry.shape(reader.config)
    dtype = reader.dtype(entry, layer)
    pieces = []
    for place in places(entry, reader.config, layer):
        first, last = place.rows or (0, shape[0])
        offset = (*place.leading, first, *(0 for _ in shape[1:]))
        size = (*(1 for _ in place.leading), last - first, *shape[1:])
        produce = partial(reader.read, entry, place)
        pieces.append(Piece(PREFIX + entry.nemo, (*leading, *shape), offset, size, dtype, produce))
    return pieces


def _packed(reader: HfReader, entry: Entry, place: Place) -> list[Piece]:
    """Blocks and scales of one expert, each read when it is written."""
    pieces = []
    for key, shape in entry.stored(reader.config, packed=True).items():
        end = key.removeprefix(entry.nemo)
        offset, size = (*place.leading, *(0 for _ in shape[2:])), (1, 1, *shape[2:])
        pieces.append(Piece(PREFIX + key, shape, offset, size, torch.uint8, partial(_part, reader, entry, place, end)))
    return pieces


def _part(reader: HfReader, entry: Entry, place: Place, end: str) -> torch.Tensor:
    return torch.from_numpy(reader.packed_part(entry, place, end))


def _scales(reader: HfReader) -> list[Group]:
    """The scales of each expert matrix, under Hugging Face's names."""
    groups = []
    for entry, layer in layers_of(reader.config):
        if entry.is_expert_matrix:
            name = entry.hf[0].format(layer=layer) + SCALES
            out, width = entry.hf_shapes(reader.config)[0]
            spec = TensorSpec(name, torch.uint8, (reader.config.num_experts, out, width // BLOCK))
            jobs = [partial(_scales_of, reader, entry, place, name) for place in places(entry, reader.config, layer)]
            groups.append(Group((spec,), tuple(jobs)))
    return groups


def _scales_of(reader: HfReader, entry: Entry, place: Place, name: str) -> list[Slab]:
    return [Slab(name, place.leading[1], reader.scales(entry, place))]


def _write_config(reader: HfReader, file: Path) -> None:
    """config.json byte for byte, unless it is OpenAI's or says in the fields of transformers 5 what 4 would not see."""
    config = old_fields(reader.config_json)
    if reader.openai or config != reader.config_json:
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    else:
        file.write_bytes((reader.folder / "config.json").read_bytes())
