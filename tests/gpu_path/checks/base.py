"""The small gpt-oss of these checks, and the two models of it: on Transformer Engine and on the local spec."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_local_experts": 8,
    "num_experts_per_tok": 4,
    "hidden_size": 128,
    "intermediate_size": 96,
    "head_dim": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "sliding_window": 32,
    "vocab_size": 640,
}


def make_base(folder: Path) -> tuple[Path, Path]:
    """A checkpoint of Hugging Face in bf16, and what the package imports from it."""
    from converters.import_hf import import_checkpoint
    from tests.converters.conftest import write_model

    hf, nemo = folder / "hf", folder / "nemo"
    write_model(hf, SIZES, weights="bf16", seed=7)
    return hf, import_checkpoint(hf, nemo)


def engine_model(config: Any, backend: str = "fused", **overrides: Any) -> torch.nn.Module:
    """Megatron's layer spec for GPUs in fp32."""
    from megatron.core.transformer.enums import AttnBackend

    # its Triton kernel takes 20 ms a program in the interpreter; `model.permutation` runs it once
    arguments = {
        "moe_permute_fusion": False,
        "attention_backend": AttnBackend[backend],
        "gradient_accumulation_fusion": False,  # there are no buffers without Megatron's DDP; the trainings have them
        **overrides,
    }
    return _build(config, **arguments)


def local_model(config: Any) -> torch.nn.Module:
    """The layer spec of machines without a GPU, in fp32."""
    from modeling.model_config import _WITHOUT_GPU

    return _build(config, **_WITHOUT_GPU)


def _build(config: Any, **overrides: Any) -> torch.nn.Module:
    from modeling import inference

    return inference.build_model(config, seq_length=256, dtype=torch.float32, **overrides)


def use_backend(name: str) -> None:
    """Have Transformer Engine choose anew among one backend, flash, fused or unfused."""
    from modeling.model_config import ATTENTION_SWITCHES
    from tests.gpu_path import emulation

    os.environ.update({each: str(int(name.upper() == each.split("_")[1])) for each in ATTENTION_SWITCHES})
    emulation.forget_backend()


def of_local(name: str, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    """The local spec's gradient of a Transformer Engine model's parameter: it has one tensor of all experts."""
    name = name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.")
    one = re.fullmatch(r"(.*mlp\.experts\.linear_fc\d\.(?:weight|bias))(\d+)", name)
    return gradients[one[1]][int(one[2])] if one else gradients[name]


def causal(tokens: torch.Tensor) -> torch.Tensor:
    """The mask that the local spec wants spelled out."""
    length = tokens.shape[1]
    return torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)


def positions(tokens: torch.Tensor) -> torch.Tensor:
    return torch.arange(tokens.shape[1]).expand(tokens.shape[0], -1)


def gradients(model: torch.nn.Module, tokens: torch.Tensor, *, local: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of the next token, and the gradient of every parameter that has one."""
    model.zero_grad()
    model.train()
    mask = causal(tokens) if local else None
    loss = model(tokens, positions(tokens), mask, labels=tokens.roll(-1, 1)).float().mean()
    loss.backward()
    model.eval()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference over the norm of what is expected."""
    return ((found - expected).norm() / (expected.norm() + 1e-12)).item()
