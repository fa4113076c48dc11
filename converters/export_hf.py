"""NeMo or Megatron-Bridge → Hugging Face: a base or a fully trained model, with an adapter merged on the way."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.artifacts import FINISHED, write_text
from common.errors import CheckpointError, ConfigurationError
from common.progress import Progress, TensorCounter, quiet
from common.values import parse_size
from converters.finite import ensure_finite
from converters.lora import Adapter
from converters.mapping import BLOCKS, SCALES, TABLE, Entry, Place, layers_of, places
from converters.megatron_source import Source
from converters.model_card import card_text
from converters.nemo_folder import checkpoint_identity
from converters.openai_layout import QUANTIZATION
from converters.output_folder import GENERATION, LICENSES, copy_files, copy_tokenizer, is_done, resumable_folder
from converters.storage.safetensors_files import Group, Slab, TensorSpec, write_sharded
from converters.storage.transposition import transpose
from modeling.mxfp4 import BLOCK, dequantize, quantize, requantize

MXFP4 = "mxfp4"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Quantization:
    """Quantization error of each expert in an MXFP4 export, stored so that a continued run has all of them."""

    def __init__(self) -> None:
        # (tensor name, expert): None where the original bytes were kept, else the squared norms of error and values
        self._norms: dict[str, dict[str, tuple[float, float] | None]] = {}

    def add(self, name: str, expert: int, norms: tuple[float, float] | None) -> None:
        self._norms.setdefault(name, {})[str(expert)] = norms

    @property
    def kept(self) -> int:
        """Number of experts' matrices that carry their original blocks and scales."""
        return sum(norms is None for experts in self._norms.values() for norms in experts.values())

    def relative_errors(self) -> dict[str, float]:
        """Root mean square error over root mean square value of what was quantized, by tensor name."""
        errors: dict[str, float] = {}
        for name, experts in sorted(self._norms.items()):
            quantized = [norms for norms in experts.values() if norms is not None]
            error, value = (sum(norms[i] for norms in quantized) for i in (0, 1))
            if quantized:
                errors[name] = math.sqrt(error / value) if value else 0.0
        return errors

    def load(self, file: Path) -> None:
        """Read the errors that an interrupted run stored."""
        if file.is_file():
            self._norms = json.loads(file.read_text())

    def save(self, file: Path) -> None:
        write_text(file, json.dumps(self._norms))


def export_checkpoint(
    nemo: Path,
    out: Path,
    *,
    adapter: Path | None = None,
    weights: str = "auto",
    shard_size: str = "5GB",
    like: Path | None = None,
    title: str = "",
    usage: str = "",
    progress: Progress = quiet,
) -> Path:
    """Write a complete Hugging Face folder: safetensors with index, config, generation_config, tokenizer, model card.

    Args:
        nemo: a checkpoint of our import, or of a training in full, of NeMo or Megatron-Bridge.
        adapter: an adapter checkpoint to merge, in fp32.
        weights: "fp32", "bf16" or "mxfp4"; "auto" is the checkpoint's own, MXFP4 where its experts are packed. As
            MXFP4, experts that training did not touch get their original blocks and scales back, byte for byte.
        like: our import (or the Hugging Face folder) that gives config.json and the tokenizer, where `nemo` is a
            checkpoint that NeMo saved and holds neither.
        title: of the model card; the checkpoint's name by default.
        usage: Markdown for the end of the model card.
        progress: called after every tensor.
    Raises:
        CheckpointError: a checkpoint is damaged or not gpt-oss; or the disk is too small.
        ConfigurationError: an unknown `weights`, or a model whose widths MXFP4 cannot hold.
    """
    if weights not in ("auto", MXFP4, *DTYPES):
        raise ConfigurationError(f"there are no weights {weights!r}: choose auto, {MXFP4}, {', '.join(DTYPES)}.")
    source = Source(nemo, like or nemo)
    weights = MXFP4 if weights == "auto" and source.reader.packed else weights
    merged = Adapter.open(adapter, source.config) if adapter else None
    limit = parse_size(shard_size)
    export = _Export(source, merged, weights)
    groups = export.groups()
    inputs = {
        "kind": "export",
        "files": source.identity() | (checkpoint_identity(adapter) if adapter else {}),
        "weights": weights,
        "shard_size": limit,
        "title": title,
        "usage": usage,
    }
    if is_done(out, inputs):
        return out
    total = sum(group.bytes for group in groups)
    smaller = f"--weights {MXFP4}" if source.has_scales and not export.mxfp4 else ""
    with resumable_folder(out, "hf-checkpoint", inputs, total, smaller) as (folder, details):
        noted = folder / f"quantization{FINISHED}"
        export.quantization.load(noted)
        count = TensorCounter("export", total, sum(len(group.jobs) for group in groups), progress)
        write_sharded(folder, groups, limit, count, lambda: export.quantization.save(noted))
        details |= {"nemo": str(nemo), "adapter": str(adapter) if adapter else None}
        if weights == MXFP4:
            details |= {"kept": export.quantization.kept, "relative_errors": export.quantization.relative_errors()}
        _write_files(source, folder, export, details, title or nemo.name, usage)
    return out


class _Export:
    """The tensors of one export, and how each is produced."""

    def __init__(self, source: Source, adapter: Adapter | None, weights: str) -> None:
        self.source, self.adapter = source, adapter
        self.config = source.config
        self.mxfp4 = weights == MXFP4
        self.dtype = DTYPES.get(weights)
        self.quantization = Quantization()

    def groups(self) -> list[Group]:
        return [self._group(entry, layer) for entry, layer in layers_of(self.config)]

    def plain_dtype(self, entry: Entry, layer: int = 0) -> torch.dtype:
        """Dtype of a tensor that is not MXFP4: bf16 in an MXFP4 export, else as requested, else the checkpoint's."""
        if self.mxfp4:
            return torch.bfloat16
        return self.dtype or self.source.reader.dtype(entry, layer)

    def _group(self, entry: Entry, layer: int) -> Group:
        names = [name.format(layer=layer) for name in entry.hf]
        shapes = entry.hf_shapes(self.config)
        where = list(places(entry, self.config, layer))
        if entry.is_expert_matrix and self.mxfp4:
            return self._mxfp4_group(entry, names[0], shapes[0], where)
        dtype = self.plain_dtype(entry, layer)
        if entry.per_expert:
            # plain experts are stored transposed: (E, in, out)
            shapes = ((self.config.num_experts, *reversed(shapes[0])),)
        specs = tuple(TensorSpec(name, dtype, shape) for name, shape in zip(names, shapes, strict=True))
        return Group(specs, tuple(partial(self._plain, entry, place, specs) for place in where))

    def _plain(self, entry: Entry, place: Place, specs: tuple[TensorSpec, ...]) -> list[Slab]:
        value = ensure_finite(self._value(entry, place).to(specs[0].dtype), f"{self.source.nemo}: {entry.nemo}")
        if place.expert is not None and entry.is_expert_matrix:
            return [Slab(specs[0].name, place.expert, transpose(value, entry.rows_in_hf(self.config)))]
        parts = entry.to_hf(value, self.config)
        if place.expert is not None:
            return [Slab(specs[0].name, place.expert, parts[0])]
        start = place.rows[0] if place.rows else 0
        return [Slab(spec.name, start, part) for spec, part in zip(specs, parts, strict=True)]

    def _value(self, entry: Entry, place: Place) -> torch.Tensor:
        value = self.source.reader.read(entry, place)
        return self.adapter.apply(entry, value, place) if self.adapter else value

    def _mxfp4_group(self, entry: Entry, name: str, rows: tuple[int, ...], where: list[Place]) -> Group:
        out, width = rows
        if width % BLOCK:
            raise ConfigurationError(f"{name} has rows of {width} values, no multiple of {BLOCK}: export it as bf16.")
        scales = (self.config.num_experts, out, width // BLOCK)
        blocks = TensorSpec(name + BLOCKS, torch.uint8, (*scales, BLOCK // 2))
        jobs = tuple(partial(self._quantized, entry, place, name) for place in where)
        return Group((blocks, TensorSpec(name + SCALES, torch.uint8, scales)), jobs)

    def _quantized(self, entry: Entry, place: Place, name: str) -> list[Slab]:
        expert = place.leading[1]
        if self.source.reader.packed and not (self.adapter and self.adapter.has_factors(entry, place)):
            self.quantization.add(name, expert, None)
            rows = entry.rows_in_hf(self.config)
            parts = {end: self.source.reader.packed_part(entry, place, end)[rows] for end in (BLOCKS, SCALES)}
            return [Slab(name + end, expert, part) for end, part in parts.items()]
        value, original = self._value(entry, place), self.source.scales(entry, place)
        blocks = _exact(value, original, entry.rows_in_hf(self.config)) if original is not None else None
        if blocks is not None and original is not None:
            self.quantization.add(name, expert, None)
            return [Slab(name + BLOCKS, expert, blocks), Slab(name + SCALES, expert, original)]
        (rows,) = entry.to_hf(value, self.config)
        exact = rows.float().numpy()
        try:
            blocks, scales = quantize(exact)
        except CheckpointError as error:
            raise CheckpointError(f"{self.source.nemo}: {name}, expert {expert}: {error}") from None
        rounded = (dequantize(blocks, scales).astype(np.uint32) << 16).view(np.float32)
        error, size = np.linalg.norm(rounded - exact) ** 2, np.linalg.norm(exact) ** 2
        self.quantization.add(name, expert, (float(error), float(size)))
        return [Slab(name + BLOCKS, expert, blocks), Slab(name + SCALES, expert, scales)]


def _exact(value: torch.Tensor, scales: np.ndarray, order: np.ndarray) -> np.ndarray | None:
    """MXFP4 blocks of `value` under the original scales, rows in this order; None if the scales cannot express it."""
    bf16 = value.bfloat16()
    if value.dtype != torch.bfloat16 and not torch.equal(bf16.to(value.dtype), value):
        return None
    return requantize(bf16.contiguous().view(torch.int16).numpy().view(np.uint16), scales, order)


def _write_files(
    source: Source, folder: Path, export: _Export, details: dict[str, Any], title: str, usage: str
) -> None:
    _write_config(source.config_json, folder / "config.json", export)
    copy_files((GENERATION, *LICENSES), source.beside, folder)
    copy_tokenizer(source.tokenizer, folder)
    storage = MXFP4 if export.mxfp4 else str(export.plain_dtype(TABLE[0])).removeprefix("torch.")
    (folder / "README.md").write_text(card_text(title, source.nemo, source.like, storage, details, usage))


def _write_config(original: bytes, target: Path, export: _Export) -> None:
    """The original config.json, byte for byte where it already says how the weights are stored."""
    raw = json.loads(original)
    config = {name: value for name, value in raw.items() if name != "quantization_config"}
    if export.mxfp4:
        config["quantization_config"] = raw.get("quantization_config", QUANTIZATION)
    # "dtype" is the name since transformers 4.56, "torch_dtype" the one before; where one stands it must tell the truth
    plain = str(export.plain_dtype(TABLE[0])).removeprefix("torch.")
    stands = [name for name in ("dtype", "torch_dtype") if name in raw]
    config |= dict.fromkeys(stands or ([] if plain == "bfloat16" and export.mxfp4 else ["dtype"]), plain)
    if config == raw:
        target.write_bytes(original)
    else:
        target.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
