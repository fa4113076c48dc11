"""LoRA for gpt-oss: on attention, and one adapter per expert, with the same numbers at every parallel layout.

NeMo's own LoRA shares one adapter among the experts of a rank, so its result depends on EP; and it draws initial
weights from the rank's random state, so its result depends on TP and PP too. Here every adapter matrix is drawn whole
from a seed of its own and each rank takes its part.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.transformer.moe.experts import TEGroupedMLP
from megatron.core.transformer.moe.router import Router
from megatron.core.transformer.transformer_layer import TransformerLayer
from nemo.collections.llm.peft.lora import LoRA, LoRALinear
from nemo.lightning.pytorch.callbacks.peft import AdapterWrapper
from nemo.utils import logging
from torch import nn

from common.errors import ConfigurationError
from modeling.expert_linear import expert_shards, grouped_linear, mark_expert_parameter
from modeling.lora_targets import ATTENTION, EXPERTS


@dataclass
class GptOssLoRA(LoRA):
    """NeMo PEFT transform; the scale of every adapter is alpha / dim.

    Checkpoint keys, with L layers, E experts (global indices), r = dim: `…mlp.experts.experts.linear_fc1.adapter.`
    `linear_in.weight` (L, E, r, H) and `linear_out.weight` (L, E, 2F, r), gate rows before up rows; of `linear_fc2`
    (L, E, r, F) and (L, E, H, r). Attention adapters are NeMo's: (L, r, in) and (L, out, r).

    Attributes:
        target_modules: any of linear_qkv, linear_proj, experts.linear_fc1, experts.linear_fc2.
        expert_layers: global layers whose experts get adapters; all of them by default. Only these are stored: the
            first axis of the expert keys is then len(expert_layers), in ascending order, instead of L.
        train_router: train the routers' weights and biases, which are stored with the adapters.
        seed: of the initial weights.
    Raises:
        ConfigurationError: another target module, a layer that the model has not, or a rank below 1.
    """

    target_modules: list[str] = field(default_factory=lambda: [*ATTENTION, *EXPERTS])
    expert_layers: list[int] | None = None
    train_router: bool = False
    seed: int = 1234

    def __post_init__(self) -> None:
        known = (*ATTENTION, *EXPERTS)
        for name in self.target_modules:
            if name not in known:
                raise ConfigurationError(f"peft.target_modules holds {name!r}: choose from {', '.join(known)}.")
        if self.dim < 1:
            raise ConfigurationError(f"peft.dim is {self.dim}: a LoRA rank is at least 1.")
        if self.expert_layers is not None:
            self.expert_layers = sorted(set(self.expert_layers))
        self._layer = -1

    def __call__(self, model: nn.Module) -> nn.Module:
        """Freeze the model, add the adapters, and say how many parameters are trained."""
        model = super().__call__(model)
        logging.info(f"Trainable parameters: {trainable_parameters(model):,}")
        return model

    def transform(self, m: nn.Module, name: str | None = None, prefix: str | None = None) -> nn.Module:
        """The module with its adapter, or unchanged. NeMo calls this for parents before their children."""
        if isinstance(m, TransformerLayer):
            self._layer = m.layer_number - 1  # global: Megatron adds the offset of the pipeline stage
        if isinstance(m, LanguageModelEmbedding) and m.config.recompute_granularity == "full":
            # Megatron's recomputed layers give gradients only where their input wants one; a frozen embedding's output
            # does not, and no adapter would be trained.
            m.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())
        if isinstance(m, Router) and self.train_router:
            m.requires_grad_(True)
        if isinstance(m, TEGroupedMLP) and self.has_experts(self._layer):
            return self._adapt_experts(m)
        adapted = super().transform(m, name, prefix)
        if isinstance(adapted, LoRALinear) and adapted is not m:
            _gather_input_itself(adapted)
            self._initialize_attention(adapted, str(name))
        return adapted

    def has_experts(self, layer: int) -> bool:
        """Whether the experts of a global layer get adapters."""
        targeted = any(name in EXPERTS for name in self.target_modules)
        return targeted and (self.expert_layers is None or layer in self.expert_layers)

    def adapter_key_filter(self, key: Any) -> bool:
        """Whether a checkpoint entry belongs to the adapter checkpoint rather than to the base model."""
        if self.train_router and isinstance(key, str) and re.search(r"\.mlp\.router\.(weight|bias)$", key):
            return True
        return super().adapter_key_filter(key)

    def _adapt_experts(self, experts: TEGroupedMLP) -> nn.Module:
        hidden, ffn = experts.config.hidden_size, int(experts.config.moe_ffn_hidden_size or 0)
        sizes = {"linear_fc1": (hidden, 2 * ffn), "linear_fc2": (ffn, hidden)}
        device = next(experts.parameters()).device
        layer = self._place(experts.config.num_layers)
        for name, (in_features, out_features) in sizes.items():
            if f"experts.{name}" not in self.target_modules:
                continue
            adapter = ExpertAdapter(
                experts.num_local_experts, in_features, out_features, self, layer, experts.config.params_dtype, device
            )
            first = parallel_state.get_expert_model_parallel_rank() * experts.num_local_experts
            for expert, weight in enumerate(adapter.linear_in.weight):
                self._draw(weight.detach(), f"experts.{name}", first + expert)
            setattr(experts, name, ExpertLoRALinear(getattr(experts, name), adapter))
        return experts

    def _place(self, layers: int) -> tuple[int, int, int]:
        """Where the current layer's experts stand in the stack of a checkpoint: axis, index, length."""
        if self.expert_layers is None:
            return 0, self._layer, layers
        if self.expert_layers[0] < 0 or self.expert_layers[-1] >= layers:
            raise ConfigurationError(f"peft.expert_layers is {self.expert_layers}: the layers are 0 to {layers - 1}.")
        return 0, self.expert_layers.index(self._layer), len(self.expert_layers)

    def _initialize_attention(self, linear: LoRALinear, name: str) -> None:
        """Draw the whole first matrix, keep this rank's part.

        NeMo splits `linear_in` of a column-parallel layer by its rank (dim 0), of a row-parallel one by its input.
        """
        weight: Any = linear.adapter.linear_in.weight  # type: ignore[union-attr]
        if not hasattr(weight, "partition_dim"):
            return  # perform_initialization=False, as llm.peft.merge_lora sets it: a checkpoint will fill it
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        shape = list(weight.shape)
        shape[weight.partition_dim] *= ranks
        whole = torch.empty(shape, device="meta" if weight.is_meta else "cpu")
        self._draw(whole, name)
        part = whole.chunk(ranks, weight.partition_dim)[parallel_state.get_tensor_model_parallel_rank()]
        weight.data.copy_(part)

    def _draw(self, weight: torch.Tensor, module: str, expert: int = 0) -> None:
        """Fill `weight` (r, in) at random, seeded by the recipe's seed, global layer, module and global expert."""
        if weight.is_meta:
            return
        key = f"{self.seed}/{self._layer}/{module}/{expert}".encode()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1)
        whole = torch.empty(weight.shape, device="cpu")  # fp32 on the CPU: the same numbers for every dtype and device
        if self.lora_A_init_method == "xavier":
            nn.init.xavier_normal_(whole, generator=generator)
        else:
            nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=generator)
        weight.copy_(whole)


def _gather_input_itself(linear: LoRALinear) -> None:
    """Have the adapter of a fused norm and linear layer gather the norm's output over the TP ranks.

    NeMo 2.7.3 asks Transformer Engine for that output gathered (peft/utils.py, `get_adapter_attributes_from_linear`),
    and the backward pass of Transformer Engine 2.12.0 and 2.20.2 drops the gradient of a gathered one
    (layernorm_linear.py: `return_layernorm_output and not return_layernorm_output_gathered`).
    """
    wrapped: Any = linear.to_wrap
    if getattr(wrapped, "return_layernorm_output_gathered", False):
        wrapped.return_layernorm_output_gathered = False
        linear.adapter.disable_sequence_parallel_comm = False  # type: ignore[union-attr,assignment]


# ---- experts ------------------------------------------------------------------------------------------------------


class ExpertMatrices(nn.Module):
    """One matrix for each expert of this rank, (E_local, out, in)."""

    def __init__(self, experts: int, out_features: int, in_features: int, dtype: torch.dtype, device: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, out_features, in_features, dtype=dtype, device=device))
        mark_expert_parameter(self.weight)


class ExpertAdapter(nn.Module):
    """Low-rank updates of one linear layer of all experts of this rank, as (T, in) → (T, out) over sorted tokens."""

    def __init__(
        self,
        experts: int,
        in_features: int,
        out_features: int,
        lora: LoRA,
        layer: tuple[int, int, int],
        dtype: torch.dtype,
        device: Any,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.linear_in = ExpertMatrices(experts, lora.dim, in_features, dtype, device)
        self.linear_out = ExpertMatrices(experts, out_features, lora.dim, dtype, device)
        self.scale = lora.alpha / lora.dim
        self.dropout = nn.Dropout(lora.dropout)
        self.dropout_first = lora.dropout_position == "pre"

    def forward(self, x: torch.Tensor, tokens_per_expert: Sequence[int]) -> torch.Tensor:
        x = self.dropout(x) if self.dropout_first else x
        x = grouped_linear(x, self.linear_in.weight, tokens_per_expert)
        x = grouped_linear(x, self.linear_out.weight, tokens_per_expert) * self.scale
        return x if self.dropout_first else self.dropout(x)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        """This rank's experts as a slice of the stack of all experts, one axis after the layers.

        The layers' axis counts layers with adapters, where Megatron's own offset would count all: a checkpoint must
        not have holes.
        """
        offsets = tuple(self.layer if axis == 0 else (axis, *rest) for axis, *rest in sharded_offsets)
        return expert_shards(self, prefix, offsets)


class ExpertLoRALinear(AdapterWrapper):
    """The experts' linear layer with its adapters; called with tokens sorted by expert, and their counts."""

    def forward(
        self, x: torch.Tensor, tokens_per_expert: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | list[torch.Tensor] | None]:
        output, bias, _ = self.base_linear_forward(x, tokens_per_expert)
        return output + self.adapter(x, tokens_per_expert), bias


def trainable_parameters(model: nn.Module) -> int:
    """Parameters that are trained, over all ranks, each counted once."""
    kinds = (ExpertMatrices, TEGroupedMLP)
    experts = {id(p) for m in model.modules() if isinstance(m, kinds) for p in m.parameters()}
    tp, ep = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_expert_model_parallel_world_size(),
    )
    count = 0
    for parameter in model.parameters():
        split = ep if id(parameter) in experts else tp if getattr(parameter, "tensor_model_parallel", False) else 1
        count += parameter.numel() * split * parameter.requires_grad
    total = torch.tensor([count], device=next(model.parameters()).device)
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        torch.distributed.all_reduce(total, group=parallel_state.get_pipeline_model_parallel_group())
    return int(total.item())
