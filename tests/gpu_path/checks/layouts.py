"""Two processes: expert LoRA on a Transformer Engine model at TP2 and at EP2, against the local spec there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.gpu_path import emulation
from tests.gpu_path.checks import base

RANKS = 2
SIZES = {"TP2": (2, 1), "EP2": (1, 2)}


def run(folder: Path) -> dict[str, Any]:
    from megatron.core import parallel_state

    from modeling import inference
    from modeling.hf_config import GptOssConfig
    from modeling.layouts import Layout

    emulation.let_fused_attention_take_fp32()
    inference.initialize()
    if torch.distributed.get_rank() == 0:
        base.make_base(folder)
    torch.distributed.barrier()
    found = {}
    for name, (tensor, expert) in SIZES.items():
        parallel_state.destroy_model_parallel()
        inference.initialize(Layout(tensor=tensor, expert=expert))
        found[name] = compare(GptOssConfig.from_file(folder / "hf"), folder / "nemo")
    return found


def compare(config: Any, nemo: Path) -> dict[str, Any]:
    from modeling import inference

    engine, local = base.engine_model(config), base.local_model(config)
    for model in (engine, local):
        inference.load_weights(model, nemo)
        adapt(model)
    base.use_backend("fused")
    torch.manual_seed(0)
    tokens = torch.randint(3, config.vocab_size, (2, 128))
    loss, found = base.gradients(engine, tokens, local=False)
    expected_loss, expected = base.gradients(local, tokens, local=True)
    worst = torch.tensor(max(base.relative(found[name], expected[name]) for name in expected))
    torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MAX)
    return {
        "adapters": [sorted(found) == sorted(expected), len(found)],
        "keys": adapter_keys(engine) == adapter_keys(local),
        "loss": abs(loss - expected_loss),
        "gradients": worst.item(),
    }


def adapt(model: torch.nn.Module) -> None:
    """Freeze the model and give it adapters whose second matrices are not zero, so that all gradients say something."""
    from nemo.collections.llm.fn.base import walk

    from modeling.expert_lora import GptOssLoRA

    model.requires_grad_(False)
    walk(model, GptOssLoRA(dim=4, alpha=8, seed=5).transform)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        if ".adapter.linear_out." in name:
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def adapter_keys(model: Any) -> dict[str, tuple[int, ...]]:
    """Names and whole shapes that a checkpoint of the adapters has."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    state = model.sharded_state_dict(prefix="module.")
    apply_factories(state)
    found = [value for value in nested_values(state) if isinstance(value, ShardedTensor) and ".adapter." in value.key]
    return {value.key: tuple(value.global_shape) for value in found}
