"""Every recipe file: it loads, its presets apply, it fits its GPUs, and its model has the published size."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigurationError
from launch.estimates import refusal_of
from modeling.hf_config import CONFIGS
from modeling.layouts import Layout
from pipeline.loading import configured, load
from planning.memory import memory_of
from recipes.schema.recipe import plan_of

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = sorted(file.stem for file in RECIPES.glob("gpt_oss_*.py"))


def test_all_recipes_are_here() -> None:
    sizes = {f"gpt_oss_{size}_{kind}" for size in ("20b", "120b") for kind in ("lora", "sft")}
    assert set(FILES) == sizes | {"gpt_oss_tiny_lora"}


@pytest.mark.parametrize("name", FILES)
def test_recipe_is_named_after_its_file(name: str) -> None:
    tree = configured(RECIPES / f"{name}.py", [])
    assert tree["name"] == name
    assert ("peft" not in tree or tree["peft"] is None) == name.endswith("sft")


@pytest.mark.parametrize(
    ("name", "preset", "path", "value"),
    [
        ("gpt_oss_20b_lora", "8xh100", ("trainer", "devices"), 8),
        ("gpt_oss_120b_lora", "2x8xh100", ("trainer", "num_nodes"), 2),
    ],
)
def test_presets(name: str, preset: str, path: tuple[str, str], value: int) -> None:
    tree = configured(RECIPES / f"{name}.py", [f"preset={preset}"])
    assert tree[path[0]][path[1]] == value
    after = configured(RECIPES / f"{name}.py", [f"{'.'.join(path)}=4", f"preset={preset}"])
    assert after[path[0]][path[1]] == 4, "what is spelt out has the last word"


def test_unknown_preset_names_the_known() -> None:
    with pytest.raises(ConfigurationError, match="its presets are 8xh100"):
        configured(RECIPES / "gpt_oss_20b_lora.py", ["preset=9xh100"])
    with pytest.raises(ConfigurationError, match="it has none"):
        configured(RECIPES / "gpt_oss_20b_sft.py", ["preset=9xh100"])


@pytest.mark.parametrize("name", [name for name in FILES if "tiny" not in name])
def test_recipe_fits_its_gpus(name: str) -> None:
    recipe = load(RECIPES / f"{name}.py", [])
    assert list(refusal_of(recipe, "80GB")) == []
    plan = plan_of(recipe)
    assert plan is not None
    assert (plan.precision, plan.distributed_optimizer) == ("bf16", True)
    assert recipe.data.packed
    assert recipe.data.micro_batch_size == 1


@pytest.mark.parametrize(("precision", "distributed"), [("bf16", True), ("fp32", False)])
def test_the_precision_decides_what_plan_counts(precision: str, distributed: bool) -> None:
    plan = plan_of(load(RECIPES / "gpt_oss_20b_lora.py", [f"model.precision={precision}"]))
    assert plan is not None
    assert (plan.precision, plan.distributed_optimizer) == (precision, distributed)


@pytest.mark.parametrize(("experts", "packed"), [("bf16", 0), ("auto", 24 * 32 * 24_883_200 * 17 // 32)])
def test_a_parameter_takes_the_bytes_of_its_precision(experts: str, packed: int) -> None:
    """But for experts that stay MXFP4, as the 20b's do for LoRA."""
    weights = []
    for precision in ("bf16", "fp32"):
        overrides = [f"model.precision={precision}", f"model.experts={experts}"]
        plan = plan_of(load(RECIPES / "gpt_oss_20b_lora.py", overrides))
        assert plan is not None
        weights.append(memory_of(plan, Layout(), 1, 80 * 10**9).weights)
    assert weights[1] - packed == 2 * (weights[0] - packed)


@pytest.mark.parametrize(
    ("precision", "bf16"), [("fp32", "true"), ("bf16", "false")], ids=["bf16 beside fp32", "fp32 beside bf16"]
)
def test_the_optimizers_settings_cannot_contradict_the_precision(precision: str, bf16: str) -> None:
    overrides = [f"model.precision={precision}", f"optim.config.bf16={bf16}"]
    with pytest.raises(ConfigurationError) as error:
        load(RECIPES / "gpt_oss_20b_lora.py", overrides)
    assert str(error.value) == (
        f"optim.config.bf16={bf16.title()} contradicts model.precision={precision}: set the precision alone."
    )


def test_what_does_not_fit_is_refused_with_a_remedy() -> None:
    recipe = load(RECIPES / "gpt_oss_120b_lora.py", ["trainer.strategy.expert_model_parallel_size=1"])
    (sentence,) = refusal_of(recipe, "80GB")
    assert "needs 99 GB" in sentence
    assert "pipeline_model_parallel_size=2" in sentence
    assert "--force" in sentence
    (sentence,) = refusal_of(load(RECIPES / "gpt_oss_120b_sft.py", ["trainer.num_nodes=1"]), "80GB")
    assert "PP" in sentence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "held", "trained"),
    [
        ("gpt_oss_20b_lora", 20_914_757_184, 24 * 16 * (2880 + 5120 + 4096 + 2880 + 32 * (2880 + 5760 + 2880 + 2880))),
        ("gpt_oss_120b_lora", 116_829_156_672, 36 * 16 * (14_976 + 128 * 14_400)),
        ("gpt_oss_20b_sft", 20_914_757_184, 20_914_757_184),
        ("gpt_oss_120b_sft", 116_829_156_672, 116_829_156_672),
    ],
)
def test_recipe_at_full_size_on_the_meta_device(name: str, held: int, trained: int) -> None:
    import torch

    from modeling import inference
    from modeling.hf_config import GptOssConfig
    from modeling.model_config import nemo_config

    recipe = load(RECIPES / f"{name}.py", [])
    config = GptOssConfig.from_file(CONFIGS / f"{Path(recipe.model.hf).name}.json")
    inference.initialize()
    try:
        settings = nemo_config(config, seq_length=recipe.data.seq_length, perform_initialization=False)
        with torch.device("meta"):
            model = settings.configure_model(tokenizer=None)
            assert sum(parameter.numel() for parameter in model.parameters()) == held
            if recipe.peft:
                model.requires_grad_(False)
                from nemo.collections.llm.fn.base import walk

                walk(model, recipe.peft.build().transform)
        counted = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        assert sum(counted) == trained
    finally:
        inference.shutdown()
