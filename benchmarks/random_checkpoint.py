"""A gpt-oss of real size with seeded random weights, stored as openai/gpt-oss-20b is: MXFP4, in shards."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpt_oss_tokenizer import write_gpt_oss_tokenizer
from converters.hf_reader import BLOCKS, SCALES
from converters.mapping import Entry, Place, layers_of, places
from converters.storage.safetensors_files import Group, Slab, TensorSpec, write_sharded
from modeling.hf_config import GptOssConfig, published_config
from modeling.mxfp4 import BLOCK

_SPREADS = {"norm": (1.0, 0.1), "sinks": (0.0, 1.0)}


def write_random_checkpoint(
    folder: Path, model: str, layers: int | None = None, seed: int = 0, vocabulary: Path | None = None
) -> GptOssConfig:
    """Write config.json, a tokenizer and the weights of `model`, cut to its first `layers` layers.

    The weights are such that attention, router and experts all change the hidden states: scores, gates and experts'
    outputs have a spread of about 1.

    Args:
        vocabulary: `o200k_base.tiktoken`, for gpt-oss's own tokenizer; without it, a tokenizer of two words.
    """
    raw = published_config(model)
    layers = layers or int(raw["num_hidden_layers"])
    raw |= {"num_hidden_layers": layers, "layer_types": raw["layer_types"][:layers]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": raw["eos_token_id"]}) + "\n")
    if vocabulary is None:
        _write_two_words(folder)
    else:
        write_gpt_oss_tokenizer(vocabulary, folder)
    config = GptOssConfig.from_dict(raw)
    groups = [_group(entry, layer, config, (seed, number)) for number, (entry, layer) in enumerate(layers_of(config))]
    write_sharded(folder, groups, 5 * 10**9)
    return config


def _group(entry: Entry, layer: int, config: GptOssConfig, seed: tuple[int, int]) -> Group:
    names = [name.format(layer=layer) for name in entry.hf]
    shapes = entry.hf_shapes(config)
    where = list(places(entry, config, layer))
    if entry.is_expert_matrix:
        ((out, width),) = shapes
        scales = (config.num_experts, out, width // BLOCK)
        specs = [
            TensorSpec(names[0] + BLOCKS, torch.uint8, (*scales, BLOCK // 2)),
            TensorSpec(names[0] + SCALES, torch.uint8, scales),
        ]
    else:
        experts = (config.num_experts,) if entry.per_expert else ()
        specs = [TensorSpec(n, torch.bfloat16, (*experts, *shape)) for n, shape in zip(names, shapes, strict=True)]
    return Group(tuple(specs), tuple(partial(_slabs, specs, place, (*seed, i)) for i, place in enumerate(where)))


def _slabs(specs: list[TensorSpec], place: Place, seed: tuple[int, ...]) -> list[Slab]:
    random = np.random.default_rng(seed)
    first, last = place.rows or (place.expert, (place.expert or 0) + 1)
    slabs = []
    for spec in specs:
        rows = spec.shape[0] if first is None else last - first
        shape = (rows, *spec.shape[1:])
        if spec.name.endswith(SCALES):
            data = random.integers(116, 122, shape, dtype=np.uint8)
        elif spec.dtype == torch.uint8:
            data = np.frombuffer(random.bytes(int(np.prod(shape))), np.uint8).reshape(shape)
        else:
            mean, std = next((spread for name, spread in _SPREADS.items() if name in spec.name), (0.0, 0.02))
            data = (torch.from_numpy(random.standard_normal(shape, np.float32)) * std + mean).bfloat16()
        slabs.append(Slab(spec.name, first or 0, data))
    return slabs


def _write_two_words(folder: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>").save_pretrained(folder)
