"""Legal layouts: each rule refuses what Megatron refuses, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeling.hf_config import GptOssConfig
from modeling.layouts import Batch, Layout, legal_layouts, violations

CONFIGS = Path(__file__).parents[2] / "modeling" / "configs"
SMALL, LARGE = (GptOssConfig.from_file(CONFIGS / f"gpt-oss-{size}.json") for size in ("20b", "120b"))


@pytest.mark.parametrize(
    ("layout", "world", "says"),
    [
        (Layout(tensor=3), 9, "64 heads do not divide by TP·CP = 3"),
        (Layout(tensor=16), 16, "8 query groups do not divide by TP·CP = 16"),
        (Layout(tensor=4, context=4), 16, "8 query groups do not divide by TP·CP = 16"),
        (Layout(expert=3), 9, "32 experts do not divide by EP = 3"),
        (Layout(pipeline=5), 5, "24 layers do not divide by PP = 5"),
        (Layout(tensor=2), 3, "3 GPUs do not divide by TP·PP·CP = 2"),
        (Layout(expert=4, pipeline=2), 12, "12 GPUs do not divide by EP·PP = 8"),
        (Layout(tensor=0), 1, "every size must be at least 1"),
    ],
)
def test_each_rule_has_its_sentence(layout: Layout, world: int, says: str) -> None:
    assert says in violations(SMALL, layout, world)


def test_batch_and_rank_rules() -> None:
    assert violations(SMALL, Layout(tensor=8), 8, Batch(2049, 1, 16)) == ["2049 tokens do not divide by 8"]
    assert violations(SMALL, Layout(context=4), 8, Batch(2052, 1, 16)) == ["2052 tokens do not divide by 8"]
    assert violations(SMALL, Layout(), 8, Batch(2048, 3, 16)) == [
        "a batch of 16 does not divide by micro-batch·DP = 24"
    ]
    assert violations(SMALL, Layout(tensor=8), 8, None, lora_rank=12) == ["LoRA rank 12 does not divide by TP = 8"]


def test_experts_regroup_the_ranks_of_attention() -> None:
    """EP is not multiplied with TP: 8 GPUs hold TP4 for attention and EP8 for the experts at once."""
    layout = Layout(tensor=4, expert=8)
    assert violations(LARGE, layout, 8) == []
    assert (layout.data_parallel(8), layout.expert_data_parallel(8)) == (2, 1)


def test_every_legal_layout_is_found_once() -> None:
    found = list(legal_layouts(SMALL, 4))
    # by hand: TP·CP·PP divides 4, EP·PP divides 4: PP1 has 6 (TP, CP) times 3 EP, PP2 3 times 2, PP4 one
    assert len(found) == len(set(found)) == 6 * 3 + 3 * 2 + 1
    assert found[0] == Layout()


def test_overrides_name_the_recipe_fields() -> None:
    assert Layout(2, 8, 4, 1).overrides() == [
        "trainer.strategy.tensor_model_parallel_size=2",
        "trainer.strategy.expert_model_parallel_size=8",
        "trainer.strategy.pipeline_model_parallel_size=4",
        "trainer.strategy.context_parallel_size=1",
    ]
