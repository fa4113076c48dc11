"""What megatron-core 0.19.2 makes of our folder: `in_megatron_core.py FOLDER`.

FOLDER holds `bridge` and `tokens.pt`; `logits.pt`, `keys.json` and the checkpoint `saved` go into it. The model is
built from the run config alone, with the layer spec that needs no Transformer Engine, in fp32, and saved in bf16.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.converters.megatron_bridge import environment

environment.core()

from megatron.core import dist_checkpointing, parallel_state  # noqa: E402
from megatron.core.fusions.fused_bias_geglu import quick_gelu  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

WITHOUT_ENGINE: dict[str, Any] = {
    "use_cpu_initialization": True,
    "moe_grouped_gemm": False,
    "moe_permute_fusion": False,
    "masked_softmax_fusion": False,
    "gradient_accumulation_fusion": False,
}
METADATA = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}


def build(run_config: Path) -> GPTModel:
    said = yaml.safe_load(run_config.read_text())["model"]
    assert said["activation_func"]["_target_"] == f"{quick_gelu.__module__}.{quick_gelu.__name__}"
    known = TransformerConfig.__dataclass_fields__
    fields = {name: value for name, value in said.items() if name in known and not isinstance(value, dict)}
    fields |= {**WITHOUT_ENGINE, "activation_func": quick_gelu, "bf16": False, "params_dtype": torch.float32}
    config = TransformerConfig(**fields)
    for name, value in said.items():
        if name.startswith("yarn_"):  # fields of Megatron-Bridge's provider, which megatron-core reads where they are
            setattr(config, name, value)
    spec = get_gpt_layer_local_spec(num_experts=config.num_moe_experts, normalization=config.normalization)
    # the key of Transformer Engine's spec, which Megatron-Bridge trains with
    spec.submodules.sharded_state_dict_keys_map = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    return GPTModel(
        config,
        spec,
        vocab_size=said["vocab_size"],
        max_sequence_length=said["seq_length"],
        position_embedding_type=said["position_embedding_type"],
        rotary_base=said["rotary_base"],
        rotary_percent=said["rotary_percent"],
        share_embeddings_and_output_weights=said["share_embeddings_and_output_weights"],
    ).eval()


def main(folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    iteration = folder / "bridge" / "iter_0000000"
    model = build(iteration / "run_config.yaml")
    state = {"model": model.sharded_state_dict(metadata=METADATA)}
    loaded, unread, missing = dist_checkpointing.load(state, str(iteration), strict="return_all")
    (folder / "keys.json").write_text(json.dumps({"unread": sorted(unread), "missing": sorted(missing)}))
    model.load_state_dict(loaded["model"], strict=True)

    tokens = torch.load(folder / "tokens.pt")
    batch, length = tokens.shape
    mask = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), 1)
    with torch.no_grad():
        torch.save(model(tokens, torch.arange(length).expand(batch, -1), mask), folder / "logits.pt")

    saved = folder / "saved" / "iter_0000007"
    saved.mkdir(parents=True)
    state = {"model": model.bfloat16().sharded_state_dict(metadata=METADATA), "checkpoint_version": 3.0, "iteration": 7}
    dist_checkpointing.save(state, str(saved), content_metadata=METADATA)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
