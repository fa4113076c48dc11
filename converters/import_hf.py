"""Hugging Face → NeMo or Megatron-Bridge, one piece in memory at a time."""

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
from common.foreign import file_in
from common.progress import Progress, TensorCounter, quiet
from converters.finite import ensure_finite
from converters.hf_reader import HfReader
from converters.hub import find
from converters.mapping import Entry, Place, layers_of, places
from converters.megatron_output import Kind, Origin, pieces_of, scales_of, write_model
from converters.output_folder import GENERATION, TOKENIZER_FILES, is_done, resumable_folder, source_files
from converters.storage.nemo_weights import PREFIX, Piece
from modeling.hf_config import old_fields

_SHA256 = re.compile("[0-9a-f]{64}")


def import_checkpoint(
    hf: str | Path,
    out: Path,
    progress: Progress = quiet,
    *,
    experts: Literal["bf16", "mxfp4"] = "bf16",
    to: Kind = "nemo",
) -> Path:
    """Write the checkpoint of a gpt-oss: weights, what its program builds it from, MXFP4 scales if any, a manifest.

    Does nothing when `out` is whole and was made from these very files; goes on where a killed run stopped.

    Args:
        hf: a folder (Hugging Face's layout or OpenAI's `original/`) or a Hub id.
        progress: called after every tensor.
        experts: "bf16" decodes MXFP4, for NeMo as it is and for training in full; "mxfp4" keeps blocks and scales,
            a third of the size, for LoRA with this package's models.
        to: whose checkpoint, NeMo's or Megatron-Bridge's.
    Raises:
        CheckpointError: the source is missing, damaged, or lacks its tokenizer; or the disk is too small.
        ConfigurationError: experts are to stay MXFP4 which are none, or in Megatron-Bridge's checkpoint.
    """
    packed = experts == "mxfp4"
    if packed and to == "bridge":
        raise ConfigurationError("Megatron-Bridge has no MXFP4 experts: import them as bf16.")
    source = find(hf)
    reader = HfReader(source, cached=True)  # of which the hashes are computed meanwhile
    if packed and not reader.mxfp4:
        raise ConfigurationError(f"{hf} holds no MXFP4 experts that could stay so: import it with bf16 experts.")
    hub_id = str(hf) if source != Path(hf) else None
    origin = Origin(reader.config, _config_json(reader), reader.tokenizer, reader.folder, hub_id)
    inputs = _inputs(reader, packed=packed, to=to)
    if is_done(out, inputs):
        return out
    pieces = [
        piece for entry, layer in layers_of(reader.config) for piece in _pieces(reader, entry, layer, packed=packed)
    ]
    scales = scales_of(reader.config, reader.scales) if reader.mxfp4 and not packed else []
    total = sum(piece.bytes for piece in pieces) + sum(group.bytes for group in scales)
    jobs = len(pieces) + sum(len(group.jobs) for group in scales)
    count = TensorCounter("import", total, jobs, progress)
    smaller = "--experts mxfp4" if scales and to == "nemo" else ""
    with resumable_folder(out, f"{to}-checkpoint", inputs, total, smaller) as (folder, details):
        hashes = _Hashes(reader.files.files)
        write_model(folder, out, to, origin, pieces, scales=scales, packed=packed, progress=count)
        details |= {"source": _source(hf), "sha256": hashes.result()}
    return out


def has_mxfp4(hf: str | Path) -> bool:
    """Whether a model's experts are published as MXFP4."""
    return HfReader(find(hf)).mxfp4


def is_imported(hf: str | Path, nemo: Path) -> bool:
    """Whether `nemo` is whole and was made from these very files with bf16 experts."""
    return is_done(nemo, _inputs(HfReader(find(hf)), packed=False, to="nemo"))


def _source(hf: str | Path) -> str:
    """A Hub id as it is, a folder with its whole path, so that neither is taken for the other elsewhere."""
    return str(Path(hf).absolute()) if Path(hf).exists() else str(hf)


def _inputs(reader: HfReader, *, packed: bool, to: Kind) -> dict[str, Any]:
    """All that decides what an import writes."""
    small = [reader.folder / name for name in ("config.json", GENERATION)]
    small += [reader.tokenizer / name for name in TOKENIZER_FILES]
    inputs = {"kind": "import", "files": source_files([*small, *reader.files.files])}
    # what was imported before there was a choice stays current
    inputs |= ({"experts": "mxfp4"} if packed else {}) | ({"to": to} if to != "nemo" else {})
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
    return list(pieces_of(entry, layer, reader.config, reader.dtype(entry, layer), partial(_read, reader)))


def _read(reader: HfReader, entry: Entry, place: Place) -> torch.Tensor:
    value = reader.read(entry, place)
    if entry.is_expert_matrix and reader.mxfp4:  # whose decoder has looked at every scale
        return value
    return ensure_finite(value, f"{reader.folder}: {entry.hf[0].format(layer=place.layer)}")


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


def _config_json(reader: HfReader) -> bytes:
    """config.json byte for byte, unless it is OpenAI's or says in the fields of transformers 5 what 4 would not see."""
    config = old_fields(reader.config_json)
    if reader.openai or config != reader.config_json:
        return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return file_in(reader.folder, "config.json").read_bytes()
