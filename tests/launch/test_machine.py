"""What a launch says about the machine, before 42 GB are imported for a training that cannot start."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from packaging.version import Version
from typer.testing import CliRunner

from common.errors import ConfigurationError, LaunchError
from launch import preflight
from launch.commands.plan import plan_layouts
from launch.executors.profiles import load_profile
from launch.launch_plan import LaunchPlan
from launch.machine import obstacles_anywhere, obstacles_here
from modeling import attention
from modeling.attention import Machine, attention_backend
from pipeline.loading import load, make_run
from pipeline.pending import Selection
from planning.ranking import Cluster, rank_layouts
from recipes.schema.recipe import Recipe, plan_of
from tests.conftest import REPOSITORY

RECIPES = REPOSITORY / "recipes"
SHIPPED = sorted(file.stem for file in RECIPES.glob("gpt_oss_*b_*.py"))
CONTEXT = "trainer.strategy.context_parallel_size=2"


def gpus(count: int, capability: tuple[int, int] = (9, 0)) -> Machine:
    return Machine(Version("2.12.0"), Version("9.18.0"), capability, count, 80 * 10**9)


def recipe(name: str, *overrides: str) -> Recipe:
    return load(RECIPES / f"{name}.py", list(overrides))


def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine, *overrides: str) -> str:
    """What a local launch of the 20b says on a machine."""
    monkeypatch.setattr(attention, "this_machine", lambda: machine)
    monkeypatch.setenv("KAGGLE_API_TOKEN", "none")
    run = make_run(RECIPES / "gpt_oss_20b_lora.py", list(overrides), tmp_path / "runs")
    profile = load_profile(None, [])
    with pytest.raises(LaunchError) as error:
        preflight.check(LaunchPlan.of(run, profile, Selection("finetune")))
    return str(error.value)


def test_no_gpu_is_told_before_anything_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096}.get(name, 16 * 10**9 // 4096))
    text = refused(tmp_path, monkeypatch, Machine(), "model.experts=bf16")
    assert "this machine has no GPU, and the model's 42 GB do not fit its 16 GB" in text
    assert "recipes/gpt_oss_tiny_lora.py" in text
    # its experts stay MXFP4, which fits; 440 steps of 32,768 tokens take too long
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096}.get(name, 24 * 10**9 // 4096))
    assert "no GPU, and a CPU would train for 2 days or so" in refused(tmp_path, monkeypatch, Machine())
    assert list(obstacles_here(recipe("gpt_oss_20b_lora", "preset=cpu"), Machine())) == []


@pytest.mark.parametrize("packed", ["true", "false"])
def test_an_a100_trains_with_and_without_packing(packed: str) -> None:
    assert list(obstacles_here(recipe("gpt_oss_20b_lora", f"data.packed={packed}"), gpus(1, (8, 0)))) == []


def test_gpus_and_their_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = refused(tmp_path, monkeypatch, gpus(1), "trainer.devices=2")
    assert "the recipe trains on 2 GPUs and this machine has 1: set trainer.devices=1" in text
    small = Machine(Version("2.12.0"), Version("9.18.0"), (9, 0), 1, 24 * 10**9)
    assert "of each GPU, which has 24 GB" in refused(tmp_path, monkeypatch, small)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_has_nothing_in_its_way_on_h100s(name: str) -> None:
    assert list(obstacles_anywhere(recipe(name))) == []
    assert list(obstacles_here(recipe(name), gpus(8))) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_the_layout_ranked_first_is_one_that_a_gpu_takes(name: str) -> None:
    """Packed sequences cannot be split, and PP4 × CP2 was advised for the 120b."""
    shipped = recipe(name)
    plan = plan_of(shipped)
    assert plan is not None
    assert plan.batch.packed
    ranked = rank_layouts(plan, Cluster(shipped.nodes, shipped.processes, 80 * 10**9))
    assert {candidate.layout.context for candidate in ranked} == {1}
    assert attention_backend(gpus(8), packed=True, context=ranked[0].layout.context) == "fused"
    assert shipped.layout in [candidate.layout for candidate in ranked if candidate.fits]


def test_a_model_is_planned_as_the_recipes_train_it() -> None:
    """Packed; context parallelism comes with --no-packed."""
    app = typer.Typer()
    app.command()(plan_layouts)
    told = [CliRunner().invoke(app, ["gpt-oss-120b", "--rows", "400", *more]).output for more in ([], ["--no-packed"])]
    assert "CP1" in told[0]
    assert "CP2" not in told[0]
    assert "CP2" in told[1]


@pytest.mark.slow  # an override of the model's configuration imports NeMo
def test_what_no_machine_trains() -> None:
    (sentence,) = obstacles_anywhere(recipe("gpt_oss_120b_lora", CONTEXT))
    assert sentence.startswith("packed sequences cannot be split over 2 ranks: set data.packed=false")
    assert list(obstacles_here(recipe("gpt_oss_120b_lora", CONTEXT), gpus(8))) == [], "told once"
    assert list(obstacles_anywhere(recipe("gpt_oss_120b_lora", CONTEXT, "data.packed=false"))) == []
    (sentence,) = obstacles_anywhere(recipe("gpt_oss_20b_lora", "model.config.apply_rope_fusion=true"))
    assert "drops YaRN's factor" in sentence


@pytest.mark.slow
def test_rope_fusion_is_refused_by_the_model_too() -> None:
    from modeling.model_config import nemo_config
    from tests.modeling.test_expert_lora import CONFIG

    with pytest.raises(ConfigurationError, match=r"drops YaRN's factor of 1\.35"):
        nemo_config(CONFIG, seq_length=64, apply_rope_fusion=True)
    assert nemo_config(CONFIG, seq_length=64).cp_comm_type == "a2a"
