"""Random adapter checkpoints of the toy model, as NeMo saves them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from converters.lora import LINEAR_IN, LINEAR_OUT, empty_states
from converters.nemo_context import Call, Symbol, write_context
from converters.nemo_folder import METADATA, TOKENIZER
from converters.storage.nemo_weights import PREFIX, Piece, write_weights
from modeling.hf_config import GptOssConfig

RANK, ALPHA = 6, 12.0
_LAYER = "decoder.layers."


def pieces_of(tensors: dict[str, torch.Tensor]) -> Iterator[Piece]:
    for key, value in tensors.items():
        for i, part in enumerate(value):
            offset = (i, *(0 for _ in part.shape))
            yield Piece(PREFIX + key, tuple(value.shape), offset, (1, *part.shape), value.dtype, part.clone)


def write_adapter(
    folder: Path,
    base: Path,
    *,
    attention: bool = True,
    expert_layers: list[int] | None = None,
    router: bool = False,
    seed: int = 0,
) -> Path:
    """An adapter checkpoint with random weights, as NeMo saves one; expert_layers of [] leaves the experts out."""
    config = GptOssConfig.from_file(base / "context" / "hf_config.json")
    layers, experts, hidden, ffn = config.num_layers, config.num_experts, config.hidden_size, config.ffn_size
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    tensors: dict[str, torch.Tensor] = {}
    if attention:
        sizes = {"linear_qkv": (hidden, config.qkv_size), "linear_proj": (config.attention_size, hidden)}
        for name, (width, rows) in sizes.items():
            tensors[f"{_LAYER}self_attention.{name}{LINEAR_IN}"] = random(layers, RANK, width)
            tensors[f"{_LAYER}self_attention.{name}{LINEAR_OUT}"] = random(layers, rows, RANK)
    if expert_layers != []:
        stack = (len(expert_layers or range(layers)), experts)
        for name, (width, rows) in {"linear_fc1": (hidden, 2 * ffn), "linear_fc2": (ffn, hidden)}.items():
            tensors[f"{_LAYER}mlp.experts.experts.{name}{LINEAR_IN}"] = random(*stack, RANK, width)
            tensors[f"{_LAYER}mlp.experts.experts.{name}{LINEAR_OUT}"] = random(*stack, rows, RANK)
    if router:
        tensors[f"{_LAYER}mlp.router.weight"] = random(layers, experts, hidden)
        tensors[f"{_LAYER}mlp.router.bias"] = random(layers, experts)
    write_weights(folder / "weights", list(pieces_of(tensors)), empty_states(tensors, layers))
    (folder / "weights" / METADATA).write_text(json.dumps({"model_ckpt_path": str(base)}))
    context = folder / "context"
    shutil.copytree(base / "context" / TOKENIZER, context / TOKENIZER)
    targets = ["linear_qkv", "linear_proj"] * attention
    targets += ["experts.linear_fc1", "experts.linear_fc2"] * (expert_layers != [])
    arguments: dict[str, Any] = {"target_modules": targets, "dim": RANK, "alpha": ALPHA}
    arguments |= {"expert_layers": expert_layers or None, "train_router": router}
    write_context(context, config, Call(Symbol("modeling.expert_lora", "GptOssLoRA"), arguments))
    return folder
