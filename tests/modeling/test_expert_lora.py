"""Expert LoRA against a per-expert loop, and the same numbers at every layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import ConfigurationError
from modeling import inference
from modeling.hf_config import GptOssConfig
from modeling.inference import Layout
from tests.shapes import PUBLISHED, lopsided

ROOT = Path(__file__).parents[2]
CONFIG = GptOssConfig.from_dict(
    lopsided(
        {
            **PUBLISHED,
            "num_hidden_layers": 4,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "hidden_size": 48,
            "intermediate_size": 80,
            "head_dim": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "sliding_window": 8,
            "vocab_size": 104,
        }
    )
)
LAYERS, EXPERTS, HIDDEN, FFN, RANK = 4, 6, 48, 80, 4
LENGTH, BATCH, STEPS = 24, 4, 4


def lora(**fields: Any):
    from modeling.expert_lora import GptOssLoRA

    settings: dict[str, Any] = {"dim": RANK, "alpha": 10, **fields}
    return GptOssLoRA(**settings)


def adapted(peft: Any, dtype: torch.dtype = torch.float32, **overrides: Any) -> torch.nn.Module:
    """This rank's part of the tiny model, frozen, with adapters."""
    from nemo.collections.llm.fn.base import walk

    model = inference.build_model(CONFIG, seq_length=LENGTH, dtype=dtype, **overrides)
    model.requires_grad_(False)
    walk(model, peft.transform)
    return model


def is_adapter(name: str) -> bool:
    return ".adapter." in name and name.endswith(".weight")  # not Megatron's empty `_extra_state`


def adapters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.named_parameters() if ".adapter." in name}


@pytest.fixture
def alone() -> Iterator[None]:
    inference.initialize()
    yield
    inference.shutdown()


# ---- against a plain loop -----------------------------------------------------------------------------------------


def randomize(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def loop(experts: Any, x: torch.Tensor, counts: list[int], probs: torch.Tensor) -> torch.Tensor:
    """The experts in the simplest words: one at a time, weights merged, gpt-oss's activation written out."""
    parts = []
    starts = [sum(counts[:i]) for i in range(len(counts))]
    for e, (start, count) in enumerate(zip(starts, counts, strict=True)):
        merged, biases = {}, {}
        for name in ("linear_fc1", "linear_fc2"):
            a = getattr(experts, name).adapter.linear_in.weight[e]
            b = getattr(experts, name).adapter.linear_out.weight[e]
            merged[name] = getattr(experts, name).to_wrap.weight[e] + 10 / RANK * b @ a
            biases[name] = getattr(experts, name).to_wrap.bias[e]
        y = x[start : start + count] @ merged["linear_fc1"].T + biases["linear_fc1"]
        gate, up = y[:, :FFN].clamp(max=7), y[:, FFN:].clamp(-7, 7)
        y = gate * torch.sigmoid(1.702 * gate) * (up + 1)
        y = y @ merged["linear_fc2"].T + biases["linear_fc2"]
        parts.append(y * probs[start : start + count, None])
    return torch.cat(parts)


@pytest.mark.parametrize("counts", [[5, 3, 9, 1, 2, 4], [0, 7, 0, 11, 0, 0], [0, 0, 0, 0, 0, 13]], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)], ids=str)
def test_experts_equal_a_plain_loop(alone: None, counts: list[int], dtype: torch.dtype, tolerance: float) -> None:
    model = adapted(lora(), dtype)
    experts = model.decoder.layers[1].mlp.experts  # type: ignore[union-attr,index]
    randomize(experts)
    experts.double()
    for parameter in experts.parameters():
        parameter.requires_grad_(True)
    x = torch.randn(sum(counts), HIDDEN, dtype=torch.float64, requires_grad=True)
    probs = torch.rand(sum(counts), dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(sum(counts), HIDDEN, dtype=torch.float64)
    leaves = [x, probs, *experts.parameters()]
    expected = loop(experts, x, counts, probs)
    expected_gradients = torch.autograd.grad(expected, leaves, upstream, allow_unused=True)

    experts.to(dtype)
    x, probs = x.detach().to(dtype).requires_grad_(), probs.detach().to(dtype).requires_grad_()
    output, bias = experts(x, torch.tensor(counts), probs)
    assert bias is None
    gradients = torch.autograd.grad(output, [x, probs, *experts.parameters()], upstream.to(dtype), allow_unused=True)

    def distance(a: torch.Tensor | None, b: torch.Tensor | None) -> float:
        zero = torch.zeros(())
        a, b = (zero if a is None else a), (zero if b is None else b)
        return ((a.double() - b).abs().max() / (1 + b.abs().max())).item()

    assert distance(output, expected) < tolerance
    assert max(distance(a, b) for a, b in zip(gradients, expected_gradients, strict=True)) < tolerance
    names = [name for name, _ in experts.named_parameters()]
    unused = [g for name, g in zip(names, gradients[2:], strict=True) if "adapter" in name]
    assert all(gradient[counts.index(min(counts))].abs().max() == 0 for gradient in unused) or min(counts) > 0


def test_untrained_adapters_change_nothing(alone: None) -> None:
    """The second matrix starts at zero."""
    model = inference.build_model(CONFIG, seq_length=LENGTH, dtype=torch.float32)
    randomize(model)  # Megatron leaves the router's bias as it finds the memory
    tokens = torch.randint(0, 104, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    before = inference.logits(model, tokens)
    from nemo.collections.llm.fn.base import walk

    walk(model, lora().transform)
    assert (inference.logits(model, tokens) - before).abs().max() <= 1e-6


class OneByOne(torch.nn.Module):
    """Stands in for Transformer Engine's grouped linear layer: its arguments, parameters and outputs."""

    def __init__(self, experts: int, in_features: int, out_features: int, **arguments: Any) -> None:
        super().__init__()
        self.bias_later = arguments["skip_bias_add"]
        for e in range(experts):
            self.register_parameter(f"weight{e}", torch.nn.Parameter(torch.zeros(out_features, in_features)))
            self.register_parameter(f"bias{e}", torch.nn.Parameter(torch.zeros(out_features)))

    def forward(self, x: torch.Tensor, counts: list[int]) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        weights, biases = ([getattr(self, f"{kind}{e}") for e in range(len(counts))] for kind in ("weight", "bias"))
        parts = [part @ weight.T for part, weight in zip(x.split(counts), weights, strict=True)]
        if self.bias_later:
            return torch.cat(parts), biases
        return torch.cat([part + bias for part, bias in zip(parts, biases, strict=True)]), None

    def sharded_state_dict(self, prefix: str, sharded_offsets: Any, metadata: Any) -> dict[str, Any]:
        return {}


def test_grouped_experts_as_on_the_gpu(alone: None) -> None:
    """One parameter for each expert, as in Transformer Engine, or one of all experts: the same with adapters."""
    from megatron.core.transformer.mlp import MLPSubmodules
    from megatron.core.transformer.moe.experts import TEGroupedMLP
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
    from nemo.collections.llm.fn.base import walk

    model: Any = inference.build_model(CONFIG, seq_length=LENGTH, dtype=torch.float32)
    layer = model.decoder.layers[2]
    randomize(layer)
    weights = dict(layer.mlp.experts.named_parameters())
    submodules = MLPSubmodules(linear_fc1=OneByOne, linear_fc2=OneByOne)
    grouped: Any = TEGroupedMLP(EXPERTS, layer.mlp.experts.config, submodules, get_default_pg_collection())
    for e in range(EXPERTS):
        for name in ("linear_fc1", "linear_fc2"):
            for kind in ("weight", "bias"):
                value = getattr(getattr(grouped, name), f"{kind}{e}")
                value.data.copy_(weights[f"{name}.{kind}"][e])
    peft = lora(target_modules=["experts.linear_fc1", "experts.linear_fc2"])
    walk(layer, peft.transform)
    stacked, layer.mlp.experts = layer.mlp.experts, grouped
    walk(layer, peft.transform)
    trained = dict(stacked.named_parameters())
    generator = torch.Generator().manual_seed(11)
    for name, parameter in grouped.named_parameters():
        if is_adapter(name):
            assert torch.equal(parameter, trained[name]), "the same initial weights"
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
            trained[name].data.copy_(parameter)

    counts = torch.tensor([4, 0, 7, 2, 0, 6])
    x, probs = torch.randn(19, HIDDEN), torch.rand(19)
    expected = stacked(x, counts, probs)[0]
    assert expected.abs().max() > 1
    assert (grouped(x, counts, probs)[0] - expected).abs().max() <= 1e-4 * expected.abs().max()

    def stored(experts: Any) -> dict[str, tuple[str, Any, Any]]:
        sharded = experts.sharded_state_dict("mlp.experts.", ((0, 2, LAYERS),))
        return {n: (v.key, v.global_shape, v.global_offset) for n, v in sharded.items() if is_adapter(n)}

    assert len(stored(grouped)) == 4
    assert stored(grouped) == stored(stacked)


def test_recomputed_layers_train_the_same(alone: None) -> None:
    """The embedding is frozen, and Megatron recomputes only what a gradient is asked of."""
    tokens = torch.randint(0, 104, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    positions, mask = torch.arange(LENGTH).expand(2, -1), torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)
    recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    gradients = []
    for overrides in ({}, recompute):
        model = adapted(lora(), **overrides).train()
        randomize(model)
        model(tokens, positions, mask, labels=tokens).mean().backward()
        trained = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
        assert all(gradient is not None and gradient.abs().max() > 0 for gradient in trained.values())
        gradients.append(trained)
    assert len(gradients[0]) == 8 * LAYERS
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


# ---- what gets adapters -------------------------------------------------------------------------------------------


def test_shapes_keys_and_counts(alone: None) -> None:
    from modeling.expert_lora import trainable_parameters
    from modeling.layouts import Batch
    from modeling.layouts import Layout as Sizes
    from modeling.lora_targets import LoraTargets
    from planning.memory import TrainingPlan, parameters

    model = adapted(lora())
    sharded = model.sharded_state_dict(prefix="module.")  # type: ignore[operator]
    shapes = {value.key: value.global_shape for name, value in sharded.items() if is_adapter(name)}
    experts = "module.decoder.layers.mlp.experts.experts."
    attention = "module.decoder.layers.self_attention."
    assert shapes == {
        experts + "linear_fc1.adapter.linear_in.weight": (LAYERS, EXPERTS, RANK, HIDDEN),
        experts + "linear_fc1.adapter.linear_out.weight": (LAYERS, EXPERTS, 2 * FFN, RANK),
        experts + "linear_fc2.adapter.linear_in.weight": (LAYERS, EXPERTS, RANK, FFN),
        experts + "linear_fc2.adapter.linear_out.weight": (LAYERS, EXPERTS, HIDDEN, RANK),
        attention + "linear_qkv.adapter.linear_in.weight": (LAYERS, RANK, HIDDEN),
        attention + "linear_qkv.adapter.linear_out.weight": (LAYERS, 96, RANK),
        attention + "linear_proj.adapter.linear_in.weight": (LAYERS, RANK, 64),
        attention + "linear_proj.adapter.linear_out.weight": (LAYERS, HIDDEN, RANK),
    }
    targets = LoraTargets(RANK, tuple(lora().target_modules))
    assert trainable_parameters(model) == parameters(TrainingPlan(CONFIG, Batch(32), targets), Sizes()).trained


def test_chosen_layers_modules_and_router(alone: None) -> None:
    peft = lora(target_modules=["experts.linear_fc2"], expert_layers=[3, 1], train_router=True)
    model = adapted(peft)
    assert sorted(adapters(model)) == [
        f"decoder.layers.{layer}.mlp.experts.linear_fc2.adapter.{matrix}.weight"
        for layer in (1, 3)
        for matrix in ("linear_in", "linear_out")
    ]
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    routers = {f"decoder.layers.{layer}.mlp.router.{kind}" for layer in range(4) for kind in ("weight", "bias")}
    assert trained == set(adapters(model)) | routers
    sharded = model.sharded_state_dict(prefix="module.")  # type: ignore[operator]
    stored = {n: (v.global_shape[:2], v.global_offset[0]) for n, v in sharded.items() if "linear_fc2.adapter" in n}
    assert stored["module.decoder.layers.1.mlp.experts.linear_fc2.adapter.linear_in.weight"] == ((2, EXPERTS), 0)
    assert stored["module.decoder.layers.3.mlp.experts.linear_fc2.adapter.linear_in.weight"] == ((2, EXPERTS), 1)
    # Of all layers' entries the same layers have adapters as without the choice, with the same initial numbers.
    whole = adapters(adapted(lora()))
    assert all(torch.equal(value, whole[name]) for name, value in adapters(model).items())
    peft.params_to_save = set()
    assert peft.adapter_key_filter("module.decoder.layers.0.mlp.router.bias")
    assert not peft.adapter_key_filter("module.decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight")


def test_settings_that_cannot_be(alone: None) -> None:
    with pytest.raises(ConfigurationError, match=r"'linear_fc1': choose from linear_qkv, linear_proj, experts"):
        lora(target_modules=["linear_fc1"])
    with pytest.raises(ConfigurationError, match=r"peft\.dim is 0"):
        lora(dim=0)
    with pytest.raises(ConfigurationError, match=r"expert_layers is \[2, 7\]: the layers are 0 to 3"):
        adapted(lora(expert_layers=[7, 2]))


def test_initial_weights_follow_the_seed(alone: None) -> None:
    first, again, other = (adapters(adapted(lora(seed=seed))) for seed in (7, 7, 8))
    ins = [name for name in first if "linear_in" in name]
    assert len(ins) == 4 * LAYERS
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in ins)
    fc1 = first["decoder.layers.0.mlp.experts.linear_fc1.adapter.linear_in.weight"]
    # Xavier: variance 2 / (in + out) of each expert's own matrix; and no two experts or layers alike
    assert fc1.var().item() == pytest.approx(2 / (HIDDEN + RANK), rel=0.15)
    matrices = [m for name in ins for m in (first[name] if "experts" in name else first[name][None])]
    assert len({tuple(matrix.flatten().tolist()) for matrix in matrices}) == len(matrices) == 2 * LAYERS * (1 + EXPERTS)


# ---- layouts ------------------------------------------------------------------------------------------------------


@contextmanager
def pretended(layout: Layout, world: int, rank: int) -> Iterator[None]:
    """Megatron's groups as one rank of a larger world sees them; nothing may communicate."""
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    parallel_state.initialize_model_parallel(
        layout.tensor,
        layout.pipeline,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=1,
        create_gloo_process_groups=False,
    )
    try:
        yield
    finally:
        inference.shutdown()


@pytest.mark.parametrize("layout", [Layout(2), Layout(1, 2), Layout(1, 1, 2), Layout(2, 2), Layout(1, 3, 2)], ids=str)
def test_initial_weights_do_not_depend_on_the_layout(layout: Layout) -> None:
    """Every rank's weights are the part of the single process's weights that its sharded state dict says."""
    with pretended(Layout(), 1, 0):
        whole = {}
        for value in adapted(lora()).sharded_state_dict().values():  # type: ignore[operator]
            if is_adapter(value.key):
                stack = whole.setdefault(value.key, torch.zeros(value.global_shape))
                stack[tuple(slice(o, o + n) for o, n in zip(value.global_offset, _local(value), strict=True))] = (
                    value.data
                )
    world = max(layout.tensor, layout.expert) * layout.pipeline
    covered = {key: torch.zeros_like(stack, dtype=torch.bool) for key, stack in whole.items()}
    for rank in range(world):
        with pretended(layout, world, rank):
            for value in adapted(lora()).sharded_state_dict().values():  # type: ignore[operator]
                if is_adapter(value.key):
                    place = tuple(slice(o, o + n) for o, n in zip(value.global_offset, _local(value), strict=True))
                    assert torch.equal(value.data.reshape(whole[value.key][place].shape), whole[value.key][place])
                    covered[value.key][place] = True
    assert all(part.all() for part in covered.values())


def _local(value: Any) -> tuple[int, ...]:
    return (1,) * value.prepend_axis_num + tuple(value.local_shape)
