"""NeMo's configuration of a gpt-oss model, for the GPU with Transformer Engine or for the CPU backend."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.fusions.fused_bias_geglu import quick_gelu
from megatron.core.transformer.enums import AttnBackend
from nemo.collections.llm import GPTOSSConfig

from common.errors import ConfigurationError
from modeling import attention
from modeling.gradients import correct_gradients
from modeling.hf_config import GptOssConfig, megatron_arguments
from modeling.layer_spec import engine_block_spec, local_block_spec
from modeling.precision import Precision

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
ATTENTION_SWITCHES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")
# Kernels and code paths of Transformer Engine and apex; the mathematics is the same without them.
_WITHOUT_ENGINE: dict[str, Any] = {
    "transformer_layer_spec": local_block_spec,
    "moe_grouped_gemm": False,
    "moe_permute_fusion": False,
    "masked_softmax_fusion": False,
    "gradient_accumulation_fusion": False,
    "apply_rope_fusion": False,
    "cross_entropy_loss_fusion": False,
}
_WITHOUT_GPU: dict[str, Any] = {**_WITHOUT_ENGINE, "use_cpu_initialization": True}


@dataclass
class CorrectedGptOssConfig(GPTOSSConfig):
    """NeMo's configuration, whose models sum gradients rightly at every layout (`modeling.gradients`).

    Attributes:
        packed_experts: experts stay MXFP4 in memory (`modeling.packed_experts`), for a checkpoint that has them so.
        decoded_expert_bytes: memory that decoded ones may take at a time.
        filled_by_checkpoint: no weight gets random values first, which on a CPU takes three times the memory of the
            vocabulary's matrices, in fp32; adapters that are put on the model later get theirs.
    """

    packed_experts: bool = False
    decoded_expert_bytes: int = 2**29
    filled_by_checkpoint: bool = False

    def configure_model(self, *args: Any, **kwargs: Any) -> Any:
        """Build this rank's part of the model, before DDP wraps it."""
        # megatron-core 0.15.3 sets these from `attention_backend`, and asserts that nobody has set them otherwise
        # (_set_attention_backend): neither the shell nor an earlier model of this process.
        for name in ATTENTION_SWITCHES:
            os.environ.pop(name, None)
        of_torch = self.packed_experts or self.attention_backend == AttnBackend.local
        if of_torch and self.transformer_layer_spec is not local_block_spec:
            self.transformer_layer_spec = engine_block_spec  # pyright: ignore[reportAttributeAccessIssue]
        wanted = self.perform_initialization
        self.perform_initialization = wanted and not self.filled_by_checkpoint
        try:
            return correct_gradients(super().configure_model(*args, **kwargs))
        finally:
            self.perform_initialization = wanted  # the model's modules, and so its adapters', keep this very object


def nemo_config(
    config: GptOssConfig, *, seq_length: int, dtype: torch.dtype = torch.bfloat16, **overrides: Any
) -> GPTOSSConfig:
    """The NeMo configuration that computes what transformers computes for the same config.json.

    Args:
        seq_length: longest sequence that the model will see, in tokens.
        dtype: of parameters and of the residual stream.
        overrides: any field of NeMo's `GPTOSSConfig`, last word.
    """
    arguments: dict[str, Any] = megatron_arguments(config)
    # NeMo 2.7.3 takes megatron.core.activations.quick_gelu, which GPTOSSConfig.__post_init__ itself refuses.
    arguments["activation_func"] = quick_gelu
    # The fused kernel of megatron-core 0.15.3 clamps before the bias is added (fused_bias_geglu.py:424): 9e-3 off.
    arguments["bias_activation_fusion"] = False
    # Otherwise each micro-batch counts alike however many answer tokens it holds, and how tickets are spread over
    # micro-batches and data-parallel ranks changes the gradient.
    arguments["calculate_per_token_loss"] = True
    # megatron-core 0.15.3 rounds the logits' gradient to bf16 there, whatever they are (fused_cross_entropy.py:82):
    # every gradient of an fp32 training would be 2e-3 off.
    arguments["cross_entropy_loss_fusion"] = dtype == torch.bfloat16
    arguments["seq_length"] = seq_length
    arguments["bf16"] = dtype == torch.bfloat16
    arguments["params_dtype"] = arguments["pipeline_dtype"] = arguments["autocast_dtype"] = dtype
    arguments["cp_comm_type"] = attention.CP_EXCHANGE  # Megatron's own choice, "p2p", has no backend with sinks
    if overrides.get("apply_rope_fusion"):
        # megatron-core 0.15.3, apply_rotary_pos_emb: the fused kernel takes no factor on cos and sin
        raise ConfigurationError("apply_rope_fusion=true drops YaRN's factor of 1.35, which gpt-oss has: leave it out.")
    machine = attention.this_machine()
    if machine.capability is None:
        arguments |= _WITHOUT_GPU
    elif machine.engine is None:
        arguments |= _WITHOUT_ENGINE
    return CorrectedGptOssConfig(**(arguments | overrides))
