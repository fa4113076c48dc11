"""The 20b and the 120b at full size on the meta device: parameters, and the keys that their checkpoints must have.

With bf16 experts, and with experts that stay MXFP4.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

SECONDS = 120


def run(folder: Path) -> dict[str, Any]:
    from megatron.core.transformer.enums import AttnBackend

    from converters.extra_states import empty_states
    from converters.mapping import TABLE
    from modeling import inference
    from modeling.hf_config import find_config
    from modeling.model_config import nemo_config

    inference.initialize()
    found = {}
    for name, packed in product(("gpt-oss-20b", "gpt-oss-120b"), (False, True)):
        config = find_config(name)
        built = nemo_config(
            config,
            seq_length=2048,
            attention_backend=AttnBackend["fused"],
            init_model_with_meta_device=True,
            expert_tensor_parallel_size=1,
            packed_experts=packed,
        )
        model = built.configure_model(tokenizer=None)
        tensors, states = asked_for(model)
        written = {f"module.{key}" for entry in TABLE for key in entry.stored(config, packed=packed)}
        found[f"{name} mxfp4" if packed else name] = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "bytes": sum(value.nbytes for value in (*model.parameters(), *model.buffers())),
            "tensors": [len(tensors), sorted(tensors ^ written)[:3]],
            "states": [len(states), sorted(states - set(empty_states(config, packed=packed)))[:3]],
        }
    return found


def asked_for(model: Any) -> tuple[set[str], set[str]]:
    """Keys of tensors and of other states that Megatron's strict load looks for."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    values = list(nested_values(model.sharded_state_dict(prefix="module.")))
    states = {value.unique_key for value in values if isinstance(value, ShardedObject)}
    return {value.key for value in values if not isinstance(value, ShardedObject)}, states
