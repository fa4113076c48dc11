"""The transformer layer where Transformer Engine is missing: Megatron's own modules under Transformer Engine's names.

One checkpoint must serve the CPU and the GPU, so the keys are those of megatron-core's Transformer Engine MoE layer:
the input norm is stored as `self_attention.linear_qkv.layer_norm_weight` (there it is fused into that module), and the
norm before the experts as `pre_mlp_layernorm.weight`. Megatron's local spec would store the latter as
`mlp.linear_fc1.layer_norm_weight` (megatron-core 0.15.3, `get_gpt_layer_local_spec`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec_for_backend
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnBackend, AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import TEGroupedMLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from nemo.collections.llm.gpt.model.base import transformer_engine_layer_spec

from modeling.expert_linear import GroupedLinear
from modeling.packed_experts import PackedGroupedLinear
from modeling.sink_attention import SinkAttention

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, (…, H) → (…, H), under Megatron's calling convention and with sequence parallelism.

    megatron-core 0.15.3's `WrappedTorchNorm` refuses `sequence_parallel`, which MoE training demands with TP > 1. The
    flag on the weight makes `finalize_model_grads` sum its gradient over the tensor-parallel ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


PACKED = MLPSubmodules(linear_fc1=PackedGroupedLinear, linear_fc2=PackedGroupedLinear)


@dataclass(frozen=True)
class _Modules(LocalSpecProvider):
    experts: MLPSubmodules

    def grouped_mlp_modules(
        self, moe_use_grouped_gemm: bool, moe_use_legacy_grouped_gemm: bool
    ) -> tuple[type, MLPSubmodules]:
        return TEGroupedMLP, self.experts


def engine_block_spec(config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """NeMo's layers of Transformer Engine modules, but for experts that stay MXFP4, and attention that it has not."""
    from megatron.core.extensions.transformer_engine import TENorm

    layer: Any = transformer_engine_layer_spec(config)
    if config.packed_experts:
        layer.submodules.mlp.submodules.experts.submodules = PACKED
    if config.attention_backend == AttnBackend.local:
        layer.submodules.self_attention.submodules.core_attention = SinkAttention
    layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=TENorm)  # pyright: ignore[reportArgumentType]


def local_block_spec(config: TransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage, and the norm after the last, out of torch and megatron-core modules only."""
    plain = MLPSubmodules(linear_fc1=GroupedLinear, linear_fc2=GroupedLinear)
    experts = PACKED if getattr(config, "packed_experts", False) else plain
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(  # pyright: ignore[reportArgumentType]
            linear_qkv=ColumnParallelLinear,
            core_attention=SinkAttention,
            linear_proj=RowParallelLinear,
            q_layernorm=IdentityOp,
            k_layernorm=IdentityOp,
        ),
    )
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(  # pyright: ignore[reportArgumentType]
            input_layernorm=RMSNorm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,  # pyright: ignore[reportArgumentType]
            pre_mlp_layernorm=RMSNorm,
            mlp=get_moe_module_spec_for_backend(_Modules(experts), num_experts=config.num_moe_experts),
            mlp_bda=get_bias_dropout_add,  # pyright: ignore[reportArgumentType]
            sharded_state_dict_keys_map={"input_layernorm.": "self_attention.linear_qkv.layer_norm_"},
        ),
    )
    layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=RMSNorm)  # pyright: ignore[reportArgumentType]
