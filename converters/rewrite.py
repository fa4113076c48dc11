"""A checkpoint of NeMo or Megatron-Bridge written as one of either, with an adapter merged on the way."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import artifacts
from common.errors import ConfigurationError
from common.progress import Progress, TensorCounter, quiet
from converters.bridge_config import read_run_config
from converters.export_hf import DTYPES
from converters.lora import Adapter
from converters.mapping import Entry, Place, layers_of
from converters.megatron_output import Kind, Origin, pieces_of, scales_of, write_model
from converters.megatron_source import Source
from converters.nemo_folder import MegatronFolder, checkpoint_identity, is_megatron
from converters.output_folder import is_done, resumable_folder

_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def rewrite_checkpoint(
    source: Path,
    out: Path,
    *,
    to: Kind,
    adapter: Path | None = None,
    weights: str = "auto",
    like: Path | None = None,
    progress: Progress = quiet,
) -> Path:
    """Write a checkpoint of the other program, or of the same with an adapter merged; goes on where it was killed.

    Args:
        adapter: an adapter checkpoint of either, merged in fp32.
        weights: "fp32", "bf16", or "auto" for the source's own; experts that are packed as MXFP4 become bf16.
        like: what gives config.json and the tokenizer, where the source holds neither.
        progress: called after every tensor.
    Raises:
        CheckpointError: a checkpoint is damaged or not gpt-oss; or the disk is too small.
        ConfigurationError: an unknown `weights`.
    """
    if weights not in ("auto", *DTYPES):
        raise ConfigurationError(f"there are no weights {weights!r} for {to}: choose auto, {', '.join(DTYPES)}.")
    opened = Source(source, like or source)
    merged = Adapter.open(adapter, opened.config) if adapter else None
    origin = Origin(opened.config, opened.config_json, opened.tokenizer, opened.beside, hub_id_of(opened.like))
    files = opened.identity() | (checkpoint_identity(adapter) if adapter else {})
    inputs: dict[str, Any] = {"kind": "rewrite", "files": files, "weights": weights, "to": to}
    if is_done(out, inputs):
        return out
    read = partial(_value, opened, merged)
    pieces = [
        piece
        for entry, layer in layers_of(opened.config)
        for piece in pieces_of(entry, layer, opened.config, DTYPES.get(weights, opened.reader.dtype(entry)), read)
    ]
    scales = scales_of(opened.config, opened.scales) if opened.has_scales else []
    total = sum(piece.bytes for piece in pieces) + sum(group.bytes for group in scales)
    count = TensorCounter("convert", total, len(pieces) + sum(len(group.jobs) for group in scales), progress)
    with resumable_folder(out, f"{to}-checkpoint", inputs, total) as (folder, details):
        write_model(folder, out, to, origin, pieces, scales=scales, progress=count)
        details |= {"source": origin.hub_id or str(source), "adapter": str(adapter) if adapter else None}
    return out


def hub_id_of(like: Path) -> str | None:
    """Hub id of the model that a checkpoint is or was made from, by its manifest or its run config."""
    manifest = artifacts.read_manifest(like)
    folder = MegatronFolder.find(like) if is_megatron(like) else None
    known = manifest.details.get("source") if manifest else None
    if known is None and folder is not None and folder.bridge and folder.settings.is_file():
        model = read_run_config(folder.settings).get("model")
        known = model.get("hf_model_id") if isinstance(model, dict) else None
    return known if isinstance(known, str) and _ID.fullmatch(known) and not Path(known).exists() else None


def _value(source: Source, adapter: Adapter | None, entry: Entry, place: Place) -> torch.Tensor:
    value = source.reader.read(entry, place)
    return adapter.apply(entry, value, place) if adapter else value
