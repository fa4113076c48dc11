"""The plan command's choices, on figures worked out by hand and on the real models."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import ConfigurationError, LaunchError
from launch.commands.plan import show
from modeling.hf_config import find_config
from modeling.layouts import Batch, Layout
from modeling.lora_targets import ATTENTION, EXPERTS, LoraTargets
from planning.memory import TrainingPlan, memory_of, optimizer_bytes, parameters
from planning.ranking import Cluster, advice, rank_layouts, step_seconds

LORA = LoraTargets(16, ATTENTION + EXPERTS)
H100 = 80 * 10**9


def training(size: str, lora: LoraTargets | None = LORA, **fields: object) -> TrainingPlan:
    values: dict = {"batch": Batch(2048, 1, 16), **fields}
    return TrainingPlan(find_config(f"gpt-oss-{size}"), lora=lora, **values)


def test_published_parameter_counts() -> None:
    assert parameters(training("20b", None), Layout()).held == 20_914_757_184
    assert parameters(training("120b", None), Layout()).held == 116_829_156_672


def test_adapter_counts_by_hand() -> None:
    # 20b: 24 layers of 16·(2880 + 5120) + 16·(4096 + 2880), and 32 experts of 16·(2880 + 5760) + 16·(2880 + 2880)
    attention = 24 * 16 * (2880 + 5120 + 4096 + 2880)
    experts = 24 * 32 * 16 * (2880 + 5760 + 2880 + 2880)
    assert parameters(training("20b"), Layout()).trained == attention + experts
    three = LoraTargets(16, EXPERTS, expert_layers=(7, 15, 23))
    assert parameters(training("20b", three), Layout()).trained == experts // 8
    stages = [parameters(training("20b", three), Layout(pipeline=4), stage).trained for stage in range(4)]
    assert stages == [0, experts // 24, experts // 24, experts // 24]


def test_optimizer_state_is_sharded_over_the_replicas() -> None:
    plan = training("20b", None)
    layout = Layout(tensor=2, expert=4)
    held = parameters(plan, layout)
    # 8 GPUs: the dense weights have 4 replicas, each expert 2
    assert optimizer_bytes(plan, layout, 8, held) == 12 * (held.dense // 4 + held.experts // 2)
    whole = training("20b", None, distributed_optimizer=False)
    assert optimizer_bytes(whole, layout, 8, held) == 12 * held.held


def test_the_known_configurations_fit() -> None:
    """The recipes' own layouts: 20b LoRA on one 80 GB GPU, 120b LoRA on eight with EP8."""
    assert memory_of(training("20b"), Layout(), 1, H100).total < H100
    best = rank_layouts(training("120b"), Cluster(1, 8, H100))[0]
    assert best.fits
    assert best.layout == Layout(expert=8)
    assert not rank_layouts(training("120b"), Cluster(1, 2, H100))[0].fits


def test_crossing_nodes_costs_more() -> None:
    plan = training("120b", batch=Batch(2048, 1, 64))
    inside = step_seconds(plan, Layout(expert=8), Cluster(2, 8, H100))["expert exchange"]
    between = step_seconds(plan, Layout(expert=16), Cluster(2, 8, H100))["expert exchange"]
    assert between > 5 * inside


def test_ranking_puts_what_fits_first_and_names_the_largest_part() -> None:
    ranked = rank_layouts(training("20b", None), Cluster(1, 8, H100))
    fits = [candidate.fits for candidate in ranked]
    assert fits == sorted(fits, reverse=True)
    assert 0 < sum(fits) < len(fits)
    costs = [round(candidate.cost, 4) for candidate in ranked if candidate.fits]
    assert costs == sorted(costs)
    assert "gradients alone 83.7 GB" in ranked[-1].reason(ranked[0])


@pytest.mark.parametrize(
    ("plan", "cluster", "says"),
    [
        (training("120b"), Cluster(1, 2, H100), ["set model.experts=mxfp4", "use 2 nodes instead of 1"]),
        (training("120b", None), Cluster(1, 8, H100), ["train with LoRA instead of all parameters"]),
        (training("20b", batch=Batch(16384, 1, 16)), Cluster(1, 1, H100), ["recompute activations in full"]),
    ],
)
def test_advice_names_changes_that_do_fit(plan: TrainingPlan, cluster: Cluster, says: list[str]) -> None:
    assert not rank_layouts(plan, cluster)[0].fits
    assert advice(plan, cluster)[: len(says)] == says


def test_show_prints_overrides_or_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    show(training("120b"), Cluster(1, 8, H100))
    assert "Best: trainer.strategy.tensor_model_parallel_size=1 trainer.strategy.expert_model_parallel_size=8" in (
        capsys.readouterr().out
    )
    with pytest.raises(LaunchError, match=r"no layout fits 80 GB a GPU, .* use 2 nodes"):
        show(training("120b"), Cluster(1, 2, H100))
    with pytest.raises(ConfigurationError, match="a batch of 16 does not divide by micro-batch·DP = 7"):
        show(training("20b"), Cluster(1, 7, H100))


def test_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gpt-oss-120b or gpt-oss-20b"):
        find_config(str(tmp_path / "missing"))


def test_command_needs_no_nemo() -> None:
    """In a process of its own: the command runs without importing NeMo, NeMo-Run, Megatron or torch."""
    import subprocess
    import sys

    code = (
        "import sys, typer; from typer.testing import CliRunner; from launch.commands.plan import plan_layouts\n"
        "app = typer.Typer(); app.command()(plan_layouts)\n"
        "result = CliRunner().invoke(app, ['gpt-oss-120b']); assert result.exit_code == 0, result.output\n"
        "heavy = {'nemo', 'nemo_run', 'megatron', 'torch'} & set(sys.modules); assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_command_help_has_an_example() -> None:
    import typer

    from launch.commands.plan import plan_layouts as plan

    app = typer.Typer()
    app.command()(plan)
    assert "Example: nemo-run plan recipes/gpt_oss_120b_lora.py" in CliRunner().invoke(app, ["--help"]).output
