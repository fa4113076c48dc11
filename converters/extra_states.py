"""Transformer Engine's `_extra_state` entries, which NeMo's restore demands of a checkpoint although they hold nothing.

Every module of Transformer Engine has one, for the scales of FP8, and none of our precisions uses it.
"""

from __future__ import annotations

from pathlib import Path

from common.errors import CheckpointError
from converters.nemo_reader import NemoReader
from converters.storage.nemo_weights import PREFIX
from modeling.hf_config import GptOssConfig

LINEARS = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "self_attention.core_attention",
    "pre_mlp_layernorm",
)
"""Modules of a layer; its input norm is part of linear_qkv."""
EXPERTS = ("mlp.experts.experts.linear_fc1", "mlp.experts.experts.linear_fc2")


def empty_states(config: GptOssConfig, *, packed: bool = False, prefix: str = PREFIX) -> list[str]:
    """Keys of all extra states of a model; packed experts, which are no modules of Transformer Engine, have none.

    megatron-core 0.15.3 and 0.19.2 name them `KEY/shard_<layer>[.<expert>]_<layers>[.<experts>]`
    (ShardedObject.unique_key), and what is outside the layers `KEY/shard_0_1`.
    """
    of_layer, layers = f"{prefix}decoder.layers.", range(config.num_layers)
    keys = [f"{of_layer}{name}._extra_state/shard_{i}_{config.num_layers}" for name in LINEARS for i in layers]
    total = f"{config.num_layers}.{config.num_experts}"
    keys += [
        f"{of_layer}{name}._extra_state/shard_{i}.{expert}_{total}"
        for name in (() if packed else EXPERTS)
        for i in layers
        for expert in range(config.num_experts)
    ]
    return [*keys, f"{prefix}decoder.final_layernorm._extra_state/shard_0_1"]


def check_states(weights: Path, config: GptOssConfig) -> None:
    """Refuse weights that a Transformer Engine model cannot be restored from.

    Raises:
        CheckpointError: extra states are missing.
    """
    reader = NemoReader(weights.parent)
    stored = reader.weights.metadata.state_dict_metadata
    missing = [key for key in empty_states(config, packed=reader.packed) if key not in stored]
    if missing:
        raise CheckpointError(
            f"{weights} lacks {len(missing)} entries that Transformer Engine asks for on a GPU, such as {missing[0]}; "
            "an older version of this package made it, or a machine without a GPU: "
            f"delete {weights.parent} and make it again."
        )
