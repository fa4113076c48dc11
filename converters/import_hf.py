"""Hugging Face → NeMo, one piece in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

import artifacts
from converters.hf_reader import HfReader, pieces
from converters.mapping import TABLE, Entry
from converters.nemo_weights import PREFIX, Piece, write_weights
from errors import CheckpointError
from modeling.hf_config import GptOssConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
Progress = Callable[[int, int], None]


def import_checkpoint(hf: str | Path, nemo: Path, progress: Progress = lambda done, total: None) -> Path:
    """Write the NeMo checkpoint of a Hugging Face gpt-oss folder: weights/, context/ and a manifest.

    Does nothing when `nemo` is whole and was made from these very files.

    Args:
        progress: called with bytes written and bytes in all.
    Raises:
        CheckpointError: the source is missing, damaged, or lacks its tokenizer.
    """
    reader = HfReader(Path(hf))
    missing = [name for name in TOKENIZER_FILES[:2] if not (reader.folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{reader.folder} lacks its tokenizer ({', '.join(missing)}): copy it there.")
    inputs = _inputs(reader)
    if artifacts.is_current(nemo, artifacts.fingerprint(inputs)):
        return nemo
    with artifacts.new_folder(nemo) as folder:
        todo = [piece for entry in TABLE for piece in _pieces(reader, entry)]
        total = sum(piece.dtype.itemsize * _count(piece.size) for piece in todo)
        done = 0

        def count(bytes_written: int) -> None:
            nonlocal done
            done += bytes_written
            progress(done, total)

        write_weights(folder / "weights", todo, _empty_states(reader.config), count)
        _write_context(reader.folder, folder / "context")
        artifacts.write_manifest(folder, "nemo-checkpoint", inputs)
    return nemo


def _pieces(reader: HfReader, entry: Entry) -> list[Piece]:
    leading, shape = entry.leading(reader.config), entry.shape(reader.config)
    found = []
    for layer, expert in pieces(entry, reader.config):
        where = () if not entry.per_layer else (layer,) if expert is None else (layer, expert)

        def produce(layer: int = layer, expert: int | None = expert) -> torch.Tensor:
            return reader.nemo_part(entry, layer, expert).to(reader.dtype)

        offset = (*where, *(0 for _ in shape))
        size = (*(1 for _ in where), *shape)
        found.append(Piece(PREFIX + entry.nemo, (*leading, *shape), offset, size, reader.dtype, produce))
    return found


def _empty_states(config: GptOssConfig) -> list[str]:
    """Keys of Transformer Engine's FP8 states, which every linear layer asks for and none of our precisions uses.

    megatron-core 0.15.3 names them `KEY/shard_<layer>[.<expert>]_<layers>[.<experts>]` (ShardedObject.unique_key).
    """
    layer = PREFIX + "decoder.layers."
    attention = [
        f"{layer}self_attention.{name}._extra_state" for name in ("linear_qkv", "linear_proj", "core_attention")
    ]
    experts = [f"{layer}mlp.experts.experts.{name}._extra_state" for name in ("linear_fc1", "linear_fc2")]
    layers = range(config.num_layers)
    keys = [f"{key}/shard_{i}_{config.num_layers}" for key in attention for i in layers]
    total = f"{config.num_layers}.{config.num_experts}"
    return keys + [f"{key}/shard_{i}.{e}_{total}" for key in experts for i in layers for e in range(config.num_experts)]


def _inputs(reader: HfReader) -> dict[str, object]:
    names = ["config.json", "generation_config.json", *TOKENIZER_FILES, *reader.shards]
    files = [reader.folder / name for name in names]
    return {"kind": "import", "files": {file.name: artifacts.hash_file(file) for file in files if file.is_file()}}


def _write_context(source: Path, context: Path) -> None:
    """config.json as it is (the source of every shape), and the tokenizer where NeMo puts it."""
    tokenizer = context / "nemo_tokenizer"
    tokenizer.mkdir(parents=True)
    shutil.copyfile(source / "config.json", context / "hf_config.json")
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", context / "generation_config.json")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, tokenizer / name)


def _count(size: tuple[int, ...]) -> int:
    product = 1
    for length in size:
        product *= length
    return product
