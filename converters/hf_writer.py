"""Write a Hugging Face folder shard by shard: a shard is closed as soon as the next tensor would not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from errors import ConfigurationError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """`5GB`, `500 MB` or `2GiB` in bytes.

    Raises:
        ConfigurationError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise ConfigurationError(f"{text!r} is no size: write for example 5GB or 500MB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def write_safetensors(
    folder: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    shard_size: int,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write `model-0000X-of-0000N.safetensors` and their index; the tensors of one shard are in memory at a time.

    Args:
        progress: called with the bytes of each tensor taken.
    """
    shards: list[tuple[Path, list[str]]] = []
    held: dict[str, torch.Tensor] = {}
    size = total = 0

    def close() -> None:
        path = folder / f"shard-{len(shards)}.safetensors"
        save_file(held, path, metadata={"format": "pt"})
        shards.append((path, list(held)))
        held.clear()

    for name, tensor in tensors:
        needed = tensor.numel() * tensor.element_size()
        if held and size + needed > shard_size:
            close()
            size = 0
        held[name] = tensor.contiguous()
        size += needed
        total += needed
        progress(needed)
    close()
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(shards, 1):
        final = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path.rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
