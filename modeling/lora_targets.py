"""Which linear layers get adapters, by the names that NeMo gives them. Nothing here imports NeMo."""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION, EXPERTS = ("linear_qkv", "linear_proj"), ("experts.linear_fc1", "experts.linear_fc2")


@dataclass(frozen=True)
class LoraTargets:
    """Which linear layers get adapters, as in `modeling.expert_lora.GptOssLoRA`."""

    rank: int
    modules: tuple[str, ...] = ATTENTION
    expert_layers: tuple[int, ...] | None = None
    router: bool = False
