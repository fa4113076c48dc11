"""How vLLM reads an adapter's factors: `vllm_lora.py PEFT CONFIG OUT`, by its own reader and the split of its manager.

OUT gets, by module, lora_a (E, r, in) and lora_b (E, out, r) of gate_up_proj and of down_proj, and the scale. No
manager is built: its kernels for experts want a GPU.
"""

# pyright: reportMissingImports=false
# it runs in the server's environment, not in .venv

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config.lora import LoRAConfig
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.peft_helper import PEFTHelper
from vllm.model_executor.models.gpt_oss import GptOssForCausalLM

MODULES = {"qkv_proj", "q_proj", "k_proj", "v_proj", "o_proj", "experts", "base_layer"}


def main(peft: str, config: str, out: str) -> None:
    with open(config) as file:
        experts = json.load(file)["num_local_experts"]
    helper = PEFTHelper.from_local_dir(peft, 2048)
    helper.validate_legal(LoRAConfig(max_lora_rank=64))
    mapper = GptOssForCausalLM.hf_to_vllm_mapper
    model = LoRAModel.from_local_checkpoint(
        peft, MODULES, peft_helper=helper, lora_model_id=1, device="cpu", weights_mapper=mapper
    )
    manager: Any = SimpleNamespace(
        _is_3d_moe_model=GptOssForCausalLM.is_3d_moe_weight,
        _get_lora_layer_weights=lambda lora, name: lora.loras.get(name),
    )
    stack = SimpleNamespace(shape=(1, experts))
    module: Any = SimpleNamespace(w13_lora_a_stacked=[stack], global_num_experts=experts, ep_rank=0)
    read = {}
    for name in [name for name in model.loras if name.endswith(".experts")]:
        LoRAModelManager._stack_moe_lora_weights(manager, model, module, name)
        lora = model.loras[name]
        read[name] = (lora.lora_a, lora.lora_b, lora.scaling)
    torch.save(read, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
