"""A random gpt-oss of any size in Hugging Face form, MXFP4 or plain; fields and names are openai/gpt-oss-20b's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file

from converters.mapping import TABLE, Entry
from modeling.hf_config import FULL, SLIDING, GptOssConfig, published_config
from modeling.mxfp4 import dequantize, quantize


def toy_config(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of openai/gpt-oss-20b with `sizes` put in; layer_types follow the number of layers."""
    vocabulary, layers = int(sizes["vocab_size"]), int(sizes["num_hidden_layers"])
    published = published_config()
    # the real ids where the vocabulary holds them; a caller with a tokenizer of its own passes that one's
    ids = {
        "eos_token_id": min(published["eos_token_id"], vocabulary - 1),
        "pad_token_id": min(published["pad_token_id"], vocabulary - 2),
    }
    pattern = [(SLIDING, FULL)[i % 2] for i in range(layers)]
    return published | ids | {"layer_types": pattern, "experts_per_token": sizes["num_experts_per_tok"], **sizes}


def write_toy_checkpoint(
    folder: Path,
    *,
    config: Mapping[str, Any],
    seed: int = 0,
    weights: Literal["mxfp4", "bf16"] = "mxfp4",
    std: float = 0.02,
    shards: int = 1,
) -> None:
    """Write config.json, generation_config.json and safetensors; the same seed gives the same values in both formats.

    Args:
        config: sizes in the fields of config.json.
        std: standard deviation of the weights; norms are 1 ± std, biases and sinks ± std.
        shards: number of safetensors files.
    """
    raw = toy_config(config)
    if weights == "bf16":
        del raw["quantization_config"]
        raw["dtype"] = "bfloat16"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
    generation = {"eos_token_id": raw["eos_token_id"], "pad_token_id": raw["pad_token_id"], "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tensors = dict(_tensors(GptOssConfig.from_dict(raw), np.random.default_rng(seed), weights == "mxfp4", std))
    names = sorted(tensors)
    files = [f"model-{i:05d}-of-{shards:05d}.safetensors" for i in range(1, shards + 1)]
    weight_map = {name: files[i * shards // len(names)] for i, name in enumerate(names)}
    for file in files:
        save_file({n: tensors[n] for n in names if weight_map[n] == file}, folder / file, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _tensors(
    config: GptOssConfig, random: np.random.Generator, mxfp4: bool, std: float
) -> Iterator[tuple[str, torch.Tensor]]:
    for entry in TABLE:
        for layer in range(config.num_layers if entry.per_layer else 1):
            for name, shape in zip(entry.hf, entry.hf_shapes(config), strict=True):
                yield from _tensor(entry, name.format(layer=layer), shape, config, random, mxfp4, std)


def _tensor(
    entry: Entry,
    name: str,
    shape: tuple[int, ...],
    config: GptOssConfig,
    random: np.random.Generator,
    mxfp4: bool,
    std: float,
) -> Iterator[tuple[str, torch.Tensor]]:
    leading = (config.num_experts,) if entry.per_expert else ()
    values = random.normal(float("norm" in name), std, (*leading, *shape)).astype(np.float32)
    if not (entry.per_expert and len(shape) == 2):
        yield name, torch.from_numpy(values).bfloat16()
        return
    blocks, scales = quantize(values)
    if mxfp4:
        yield name + "_blocks", torch.from_numpy(blocks)
        yield name + "_scales", torch.from_numpy(scales)
    else:
        rows = torch.from_numpy(dequantize(blocks, scales).view(np.int16)).view(torch.bfloat16)
        yield name, rows.transpose(-1, -2).contiguous()
