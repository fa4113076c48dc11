"""Model FLOPs of a training step and peak FLOP/s of GPUs, for model FLOPs utilisation. Nothing here imports NeMo.

The count is of the mathematics, whatever the kernels do: recomputed activations, padding of expert batches and
attention scores that a mask throws away are no model FLOPs.

Source: Chowdhery et al., PaLM (2022), appendix B, for utilisation; a product of (m, k) and (k, n) is 2·m·k·n.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modeling.hf_config import SLIDING, GptOssConfig
from modeling.lora_targets import ATTENTION, EXPERTS, LoraTargets

# Dense bf16 tensor-core FLOP/s of one GPU by a part of its name. Source: NVIDIA's data sheets, without sparsity.
PEAK_FLOPS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}


@dataclass(frozen=True)
class Work:
    """Size of a model's input: positions, and the (query, key) pairs that the causal mask and the window let through.

    Attributes:
        tokens: positions, padding included.
        full, windowed: pairs a head, in a layer with full and one with sliding attention.
    """

    tokens: float
    full: float
    windowed: float


@dataclass(frozen=True)
class Flops:
    """FLOPs of one forward and one backward pass over the same work, all layers and ranks together."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


def visible_pairs(lengths: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of a query and a key that it sees, over sequences of these lengths: without and with a sliding window.

    Args:
        lengths: integers, any shape; a query sees itself and what came before it.
        window: keys that a query of a sliding layer sees, itself included.
    """
    lengths = lengths.double()
    beyond = (lengths - window).clamp(min=0)
    full = lengths * (lengths + 1) / 2
    return full.sum(), (full - beyond * (beyond + 1) / 2).sum()


def training_flops(config: GptOssConfig, work: Work, lora: LoraTargets | None) -> Flops:
    """FLOPs of a training step over `work`, with LoRA or of all parameters.

    A matrix of n active parameters costs 2n a token forward, 2n backward for the gradient of its input and 2n for its
    own: 6n when it is trained, 4n when it is frozen under adapters. Attention costs 4·A a pair forward (scores, and
    their product with the values) and twice that backward, frozen or not, since it has no parameters. Only the experts
    that a token is routed to count. Left out: norms, softmax, activations, rotation, Adam; and, to LoRA's credit, that
    nothing flows back beneath the first adapter.
    """
    h, f, q, a = config.hidden_size, config.ffn_size, config.qkv_size, config.attention_size
    active = config.experts_per_token
    frozen = trained = 0.0
    for layer in range(config.num_layers):
        frozen += h * q + a * h + h * config.num_experts + active * 3 * h * f
        if lora is None:
            continue
        sizes = {"linear_qkv": h + q, "linear_proj": a + h, EXPERTS[0]: h + 2 * f, EXPERTS[1]: f + h}
        for module in lora.modules:
            if module in ATTENTION:
                trained += lora.rank * sizes[module]
            elif lora.expert_layers is None or layer in lora.expert_layers:
                trained += lora.rank * sizes[module] * active
        if lora.router:
            trained, frozen = trained + h * config.num_experts, frozen - h * config.num_experts
    frozen += config.vocab_size * h
    if lora is None:
        frozen, trained = 0.0, frozen
    sliding = sum(kind == SLIDING for kind in config.layer_types)
    attention = 4 * a * (sliding * work.windowed + (config.num_layers - sliding) * work.full)
    forward = 2 * (frozen + trained) * work.tokens + attention
    return Flops(forward, (2 * frozen + 4 * trained) * work.tokens + 2 * attention)


def peak_flops(device: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its name (`torch.cuda.get_device_name`); None for one that is not listed."""
    return next((peak for name, peak in PEAK_FLOPS.items() if all(part in device for part in name.split())), None)
