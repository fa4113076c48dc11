"""The memory model against Megatron's own modules: parameters exactly, activations against torch's memory profiler."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling import inference
from modeling.hf_config import GptOssConfig
from modeling.layouts import Batch, Layout, legal_layouts
from modeling.lora_targets import ATTENTION, EXPERTS, LoraTargets
from modeling.model_config import nemo_config
from modeling.mxfp4_on_device import decode
from planning.memory import TrainingPlan, activations, base_bytes, dispatch_buffers, optimizer_bytes, parameters
from tests.memory_profile import highest_memory
from tests.shapes import PUBLISHED, lopsided

CONFIGS = Path(__file__).parents[2] / "modeling" / "configs"
TINY = GptOssConfig.from_dict(
    lopsided(
        {
            **PUBLISHED,
            "num_hidden_layers": 3,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "hidden_size": 160,
            "intermediate_size": 224,
            "head_dim": 16,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "sliding_window": 16,
            "vocab_size": 640,
        }
    )
)


def shaped(**fields: int) -> GptOssConfig:
    """The tiny configuration with other fields of config.json."""
    return GptOssConfig.from_dict(lopsided(TINY.raw | fields))


# ---- parameters, on the meta device -------------------------------------------------------------------------------


def megatron_parameters(
    config: GptOssConfig, layout: Layout, world: int, rank: int, lora: LoraTargets | None = None
) -> tuple[int, int, float]:
    """Parameters that Megatron builds on one rank of a pretended world, those it trains, and their optimizer's bytes.

    The optimizer's are counted over the groups that Megatron made: each parameter is shared by its replicas.
    """
    from megatron.core import parallel_state
    from nemo.collections.llm.fn.base import walk
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        parallel_state.initialize_model_parallel(
            layout.tensor,
            layout.pipeline,
            expert_model_parallel_size=layout.expert,
            expert_tensor_parallel_size=1,
            create_gloo_process_groups=False,
        )
        model = nemo_config(
            config,
            seq_length=64,
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            expert_model_parallel_size=layout.expert,
            expert_tensor_parallel_size=1,
            sequence_parallel=layout.tensor > 1,
            perform_initialization=False,
        )
        with torch.device("meta"):
            built = model.configure_model(
                tokenizer=None,
                pre_process=parallel_state.is_pipeline_first_stage(),
                post_process=parallel_state.is_pipeline_last_stage(),
            )
            if lora:
                from modeling.expert_lora import GptOssLoRA

                built.requires_grad_(False)
                walk(built, GptOssLoRA(dim=lora.rank, target_modules=list(lora.modules)).transform)
        found: list[Any] = list(built.parameters())
        trained = [parameter for parameter in found if parameter.requires_grad]
        dense = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
        experts = parallel_state.get_expert_data_parallel_world_size()
        shared = [p.numel() / (dense if getattr(p, "allreduce", True) else experts) for p in trained]
        # fp32 master weight and Adam's two moments
        return sum(p.numel() for p in found), sum(p.numel() for p in trained), 12 * sum(shared)
    finally:
        inference.shutdown()


def assert_parameters(config: GptOssConfig, layout: Layout, world: int, lora: LoraTargets | None = None) -> None:
    plan = TrainingPlan(config, Batch(64), lora)
    for stage in {0, layout.pipeline - 1}:
        held = parameters(plan, layout, stage)
        built = megatron_parameters(config, layout, world, stage * world // layout.pipeline, lora)
        assert built[:2] == (held.held, held.trained), (layout, stage)
        assert optimizer_bytes(plan, layout, world, held) == pytest.approx(built[2], rel=1e-4), (layout, stage)


@pytest.mark.parametrize("layout", [Layout(), Layout(2, 3), Layout(2, 1, 3), Layout(1, 2, 3)], ids=str)
def test_parameters_of_a_lopsided_model(layout: Layout) -> None:
    assert_parameters(TINY, layout, 12)
    assert_parameters(TINY, layout, 12, LoraTargets(6, (*ATTENTION, *EXPERTS)))


@pytest.mark.parametrize("size", ["20b", "120b"])
@pytest.mark.parametrize("layout", [Layout(1, 8), Layout(4, 2, 2), Layout(8, 4, 2)], ids=str)
def test_parameters_at_full_size(size: str, layout: Layout) -> None:
    config = GptOssConfig.from_file(CONFIGS / f"gpt-oss-{size}.json")
    assert_parameters(config, layout, 16, LoraTargets(16, (*ATTENTION, *EXPERTS)))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["20b", "120b"])
def test_parameters_at_full_size_at_every_layout(size: str) -> None:
    config = GptOssConfig.from_file(CONFIGS / f"gpt-oss-{size}.json")
    # Context parallelism changes no parameters, and Megatron's local attention refuses it.
    layouts = [layout for layout in legal_layouts(config, 16) if layout.context == 1]
    assert len(layouts) > 30
    for layout in layouts:
        assert_parameters(config, layout, 16)


def test_packed_weights_are_counted_to_the_byte(alone: None) -> None:
    """Four bits a value and eight for every 32: 0.53 bytes a parameter, of a model that Megatron builds."""
    plan = TrainingPlan(TINY, Batch(64), LoraTargets(6), packed_experts=True)
    model = inference.build_model(TINY, seq_length=64, dtype=torch.bfloat16, packed_experts=True)
    buffers = [value for name, value in model.named_buffers() if ".weight_" in name]
    held = parameters(replace(plan, lora=None), Layout())
    assert sum(buffer.nbytes for buffer in buffers) == held.packed * 17 / 32
    assert held.packed == TINY.num_layers * TINY.num_experts * 3 * TINY.ffn_size * TINY.hidden_size
    assert sum(p.nbytes for p in [*model.parameters(), *buffers]) == held.size("bf16") == base_bytes(plan)


# ---- gradients, optimizer, activations: measured ------------------------------------------------------------------


@pytest.fixture
def alone():
    inference.initialize()
    yield
    inference.shutdown()


def test_gradients_and_optimizer_state(alone: None) -> None:
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    model = inference.build_model(TINY, seq_length=32, dtype=torch.bfloat16).train()
    ddp: Any = DistributedDataParallel(model.config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), model)  # type: ignore[arg-type]
    settings = OptimizerConfig(lr=1e-3, bf16=True, use_distributed_optimizer=False)
    optimizer = get_megatron_optimizer(settings, [ddp])
    tokens = torch.randint(0, 640, (1, 32))
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool).triu(1)
    ddp(tokens, torch.arange(32)[None], mask, labels=tokens).mean().backward()
    optimizer.step()
    buffers = sum(buffer.grad_data.nbytes for buffer in ddp.buffers + ddp.expert_parallel_buffers)
    state = [
        value for group in optimizer.optimizer.state.values() for value in group.values() if torch.is_tensor(value)
    ]
    masters = [parameter for group in optimizer.optimizer.param_groups for parameter in group["params"]]
    measured = sum(value.nbytes for value in state if value.ndim) + sum(parameter.nbytes for parameter in masters)
    plan = TrainingPlan(TINY, Batch(32), distributed_optimizer=False)
    held = parameters(plan, Layout())
    assert 4 * held.trained == pytest.approx(buffers, rel=0.02)
    assert optimizer_bytes(plan, Layout(), 1, held) == pytest.approx(measured, rel=0.02)


def measured_peak(plan: TrainingPlan) -> int:
    """Highest sum of allocations of torch's profiler over a forward and backward pass, weights and gradients aside."""
    from nemo.collections.llm.fn.base import walk

    from modeling.expert_lora import GptOssLoRA

    config, batch = plan.config, plan.batch
    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    overrides = full if plan.recompute == "full" else {}
    overrides |= {"packed_experts": plan.packed_experts, "decoded_expert_bytes": plan.decoded_bytes}
    model = inference.build_model(config, seq_length=batch.seq_length, dtype=torch.float32, **overrides).train()
    if plan.lora:
        model.requires_grad_(False)
        walk(model, GptOssLoRA(target_modules=list(plan.lora.modules), dim=plan.lora.rank).transform)
    tokens = torch.randint(0, config.vocab_size, (batch.micro, batch.seq_length))
    positions = torch.arange(batch.seq_length).expand(batch.micro, -1).contiguous()
    mask = torch.ones(1, 1, batch.seq_length, batch.seq_length, dtype=torch.bool).triu(1)

    def step() -> None:
        model(tokens, positions, mask, labels=tokens).mean().backward()

    step()  # gradients are allocated, kernels compiled
    return highest_memory(step)


ACTIVATIONS = {
    "plain": TrainingPlan(TINY, Batch(128, 2, 2)),
    "experts": TrainingPlan(shaped(num_experts_per_tok=4, head_dim=4), Batch(64, 8, 8)),
    "scores": TrainingPlan(TINY, Batch(384)),
    "vocabulary": TrainingPlan(shaped(vocab_size=16000, num_hidden_layers=1), Batch(128, 2, 2)),
    "adapters": TrainingPlan(TINY, Batch(128, 2, 2), LoraTargets(8)),
    "adapters and vocabulary": TrainingPlan(shaped(vocab_size=16000), Batch(128, 2, 2), LoraTargets(8)),
    "recomputed": TrainingPlan(shaped(num_hidden_layers=5), Batch(128, 2, 2), recompute="full"),
    "adapters on experts": TrainingPlan(TINY, Batch(128, 2, 2), LoraTargets(8, (*ATTENTION, *EXPERTS))),
    "packed experts": TrainingPlan(
        TINY, Batch(64, 2, 2), LoraTargets(8, (*ATTENTION, *EXPERTS)), packed_experts=True, decoded_bytes=2_000_000
    ),
    "adapters, recomputed": TrainingPlan(
        shaped(num_hidden_layers=5), Batch(128, 2, 2), LoraTargets(8, (*ATTENTION, *EXPERTS)), recompute="full"
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # decoded on the CPU in memory of numpy's, which the profiler does not see: as on a GPU, in torch's
    monkeypatch.setattr("modeling.packed_experts.decode", lambda *packed: decode(*packed).clone())
    plan = replace(ACTIVATIONS[name], precision="fp32", fused=False)
    expected = activations(plan, Layout(), 1) + dispatch_buffers(plan, Layout())
    assert expected == pytest.approx(measured_peak(plan), rel=0.15)
