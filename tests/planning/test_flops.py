"""Model FLOPs by formula against torch's own count of the products that the tiny model makes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling import inference
from modeling.hf_config import GptOssConfig
from modeling.lora_targets import ATTENTION, EXPERTS, LoraTargets
from planning.flops import Flops, Work, peak_flops, training_flops, visible_pairs
from tests.planning.test_memory import CONFIGS, shaped

# Wide enough that what the formula leaves out is small; not the rank of 4·n bytes that torch's uncounted kernel takes.
CONFIG, LENGTH, RANK = shaped(hidden_size=320, num_hidden_layers=2, num_experts_per_tok=3), 96, 6
TARGETS = LoraTargets(RANK, (*ATTENTION, *EXPERTS))


@pytest.fixture
def alone() -> Iterator[None]:
    inference.initialize()
    yield
    inference.shutdown()


def grouped_products(left: torch.Size, right: torch.Size, *_: object, **__: object) -> int:
    """FLOPs of torch's grouped product, which its counter (torch 2.13) leaves out: each row meets one matrix."""
    return 2 * left.numel() * right[-1]


def counted(lora: LoraTargets | None) -> Flops:
    """FLOPs of one forward and one backward pass, by torch."""
    from nemo.collections.llm.fn.base import walk

    from modeling.expert_lora import GptOssLoRA

    model = inference.build_model(CONFIG, seq_length=LENGTH, dtype=torch.float32).train()
    if lora:
        model.requires_grad_(False)
        walk(model, GptOssLoRA(dim=lora.rank).transform)
    tokens = torch.randint(0, 640, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped_products}) as counter:
        loss = model(tokens, torch.arange(LENGTH)[None], mask, labels=tokens).mean()
        forward = counter.get_total_flops()
        loss.backward()
    return Flops(forward, counter.get_total_flops() - forward)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, TARGETS], ids=["all", "LoRA"])
def test_formula_against_torchs_count(alone: None, lora: LoraTargets | None) -> None:
    """Attention without Transformer Engine multiplies all pairs of a block, masked or not: here they are counted so.

    Forward the two agree to the last product; backward too, but for scores that are computed again there and are no
    model FLOPs, where all parameters are trained. With LoRA, autograd needs no gradient beneath the first layer's
    projection, which the formula counts, and Megatron computes that of frozen router weights, which it does not: 3 %
    here.
    """
    work = Work(LENGTH, LENGTH**2, LENGTH**2)
    expected, measured = training_flops(CONFIG, work, lora), counted(lora)
    assert measured.forward == expected.forward
    first = 2 * LENGTH * CONFIG.hidden_size * CONFIG.qkv_size
    routers = 2 * LENGTH * CONFIG.hidden_size * CONFIG.num_experts * CONFIG.num_layers
    again = CONFIG.num_layers * 2 * CONFIG.attention_size * LENGTH**2
    assert measured.backward - again == expected.backward - (0 if lora is None else first - routers)
    assert measured.backward == pytest.approx(expected.backward, rel=0.035)
    assert measured.backward / measured.forward == pytest.approx(2.0 if lora is None else 1.0, rel=0.05)


def test_pairs_that_attention_sees() -> None:
    lengths, window = torch.tensor([1, 5, 9]), 4
    seen = [[sum(q - k < limit for q in range(n) for k in range(q + 1)) for n in (1, 5, 9)] for limit in (99, window)]
    full, windowed = visible_pairs(lengths, window)
    assert (full.item(), windowed.item()) == (sum(seen[0]), sum(seen[1])) == (61, 45)


def test_20b_by_hand() -> None:
    """OpenAI's 3.6 billion active parameters: without the embedding, which multiplies nothing."""
    config = GptOssConfig.from_file(CONFIGS / "gpt-oss-20b.json")
    layer = 2880 * 5120 + 4096 * 2880 + 32 * 2880 + 4 * 3 * 2880 * 2880
    matrices = 24 * layer + 201_088 * 2880
    full = training_flops(config, Work(1, 0, 0), None)
    assert full.forward == 2 * matrices == pytest.approx(2 * 3.6e9, rel=0.005)
    assert full.total == 6 * matrices
    adapters = 24 * 16 * (2880 + 5120 + 4096 + 2880 + 4 * (2880 + 5760 + 2880 + 2880))
    lora = training_flops(config, Work(1, 0, 0), LoraTargets(16, (*ATTENTION, *EXPERTS)))
    assert lora.total == 4 * matrices + 6 * adapters
    pair = training_flops(config, Work(0, 1, 0), None)
    assert (pair.forward, pair.backward) == (12 * 4 * 4096, 2 * 12 * 4 * 4096)
    assert training_flops(config, Work(0, 0, 1), None) == pair, "half of the layers slide"


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA B200", 2250e12),
        ("Tesla T4", None),
    ],
)
def test_peak_of_a_gpu(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
