"""NeMo → Hugging Face: a base or a fully trained model, with an adapter merged on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch

import artifacts
from converters.hf_reader import pieces
from converters.hf_writer import parse_size, write_safetensors
from converters.lora import Adapter
from converters.mapping import TABLE, Entry
from converters.nemo_weights import WeightsReader
from errors import CheckpointError, ConfigurationError
from modeling.hf_config import GptOssConfig

Weights = Literal["auto", "fp32", "bf16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Progress = Callable[[int, int], None]


def export_checkpoint(
    nemo: Path,
    out: Path,
    *,
    adapter: Path | None = None,
    weights: str = "auto",
    shard_size: str = "5GB",
    like: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Write a complete Hugging Face folder: safetensors with index, config, generation_config and tokenizer.

    Args:
        nemo: a checkpoint of our import, or of NeMo's training in full.
        adapter: an adapter checkpoint to merge, in fp32.
        weights: dtype of the output; "auto" is the checkpoint's own.
        like: our import (or the Hugging Face folder) that gives config.json and the tokenizer, where `nemo` is a
            checkpoint that NeMo saved and holds neither.
        progress: called with bytes written and bytes in all.
    Raises:
        CheckpointError: a checkpoint is damaged or not gpt-oss. ConfigurationError: an unknown `weights`.
    """
    if weights not in ("auto", *_DTYPES):
        raise ConfigurationError(f"weights {weights!r} is not one of auto, {', '.join(_DTYPES)}.")
    source = _Source(nemo, like or nemo)
    merged = Adapter.open(adapter) if adapter else None
    dtype = source.dtype if weights == "auto" else _DTYPES[weights]
    limit = parse_size(shard_size)
    source.check()
    with artifacts.new_folder(out) as folder:
        _write_files(source, folder, dtype)
        total = sum(dtype.itemsize * source.size(entry) for entry in TABLE)
        done = 0

        def count(bytes_taken: int) -> None:
            nonlocal done
            done += bytes_taken
            progress(done, total)

        write_safetensors(folder, _tensors(source, merged, dtype), limit, count)
        inputs = {"nemo": str(nemo.resolve()), "adapter": str(adapter.resolve()) if adapter else None}
        artifacts.write_manifest(folder, "hf-checkpoint", {**inputs, "weights": weights, "shard_size": shard_size})
    return out


class _Source:
    def __init__(self, nemo: Path, like: Path) -> None:
        self.weights = WeightsReader(nemo / "weights")
        context = like / "context"
        self.config_file = next((f for f in (context / "hf_config.json", like / "config.json") if f.is_file()), None)
        if self.config_file is None:
            raise CheckpointError(f"{like} holds no config.json of its model: name the imported base with --like.")
        self.config = GptOssConfig.from_file(self.config_file)
        self.tokenizer = context / "nemo_tokenizer" if (context / "nemo_tokenizer").is_dir() else like
        self.generation = self.config_file.with_name("generation_config.json")
        self.dtype = self.weights.dtype("decoder.final_layernorm.weight")

    def check(self) -> None:
        """Every tensor of the table is there, in its shape, and the checkpoint holds no other."""
        for entry in TABLE:
            expected = (*entry.leading(self.config), *entry.shape(self.config))
            if self.weights.shape(entry.nemo) != expected:
                found = self.weights.shape(entry.nemo)
                raise CheckpointError(f"{entry.nemo} has shape {found}, {self.config_file} says {expected}.")
        known = {entry.nemo for entry in TABLE}
        unknown = [key for key in self.weights.tensors if key not in known and "_extra_state" not in key]
        if unknown:
            raise CheckpointError(f"{self.weights.folder} holds tensors that gpt-oss has not, such as {unknown[0]}.")

    def size(self, entry: Entry) -> int:
        return torch.Size((*entry.leading(self.config), *entry.shape(self.config))).numel()


def _tensors(source: _Source, adapter: Adapter | None, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    layers = range(source.config.num_layers)
    for layer in layers:
        for entry in TABLE:
            if entry.per_layer:
                yield from _entry_tensors(source, adapter, dtype, entry, layer)
    for entry in TABLE:
        if not entry.per_layer:
            yield from _entry_tensors(source, adapter, dtype, entry, 0)


def _entry_tensors(
    source: _Source, adapter: Adapter | None, dtype: torch.dtype, entry: Entry, layer: int
) -> Iterator[tuple[str, torch.Tensor]]:
    names = [name.format(layer=layer) for name in entry.hf]
    if not entry.per_expert:
        yield from zip(names, _hf_parts(source, adapter, dtype, entry, layer, None), strict=True)
        return
    rows = entry.hf_shapes(source.config)[0]
    shape = (source.config.num_experts, *reversed(rows))  # plain experts are stored transposed: (E, in, out)
    stacked = torch.empty(shape, dtype=dtype)
    for of_layer, expert in pieces(entry, source.config):
        if of_layer == layer and expert is not None:
            (part,) = _hf_parts(source, adapter, dtype, entry, layer, expert)
            stacked[expert] = part.T if part.dim() == 2 else part
    yield names[0], stacked


def _hf_parts(
    source: _Source, adapter: Adapter | None, dtype: torch.dtype, entry: Entry, layer: int, expert: int | None
) -> list[torch.Tensor]:
    where = () if not entry.per_layer else (layer,) if expert is None else (layer, expert)
    value = source.weights.read(entry.nemo, *where)
    if adapter is not None and entry.per_layer:
        value = adapter.apply(entry, value, layer, expert)
    return entry.to_hf(value.to(dtype), source.config)


def _write_files(source: _Source, folder: Path, dtype: torch.dtype) -> None:
    config = {name: value for name, value in source.config.raw.items() if name != "quantization_config"}
    # "dtype" is the name since transformers 4.56, "torch_dtype" the one before; one of them must tell the truth
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if source.generation.is_file():
        shutil.copyfile(source.generation, folder / "generation_config.json")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (source.tokenizer / name).is_file():
            shutil.copyfile(source.tokenizer / name, folder / name)
