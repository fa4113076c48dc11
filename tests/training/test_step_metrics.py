"""What a training tells: the same figures in history.jsonl, in TensorBoard's files and on the console."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common.errors import ConfigurationError
from tests.shapes import lopsided
from tests.training.conftest import STEPS
from tests.training.trainings import Done

pytestmark = pytest.mark.slow
ROW: dict[str, Any] = {
    "step": 7,
    "loss": 1.25,
    "lr": 2e-4,
    "grad_norm": 0.5,
    "tokens": 640,
    "seconds": 0.5,
    "tokens_per_second_per_gpu": 1280.0,
    "expert_entropy": [0.9, 1.0],
    "expert_largest_share": [0.4, 0.25],
}


def board(done: Done) -> dict[str, dict[int, float]]:
    """Scalars of the run's event files: values by step, by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(done.run / "finetune" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("name", ["whole", "broken", "whole-ep2"])
def test_tensorboard_shows_what_the_history_holds(trainings: dict[str, list[Done]], name: str) -> None:
    from training.callbacks.step_metrics import scalars

    expected: dict[str, dict[int, float]] = {}
    for row in trainings[name][-1].history():
        for figure, value in scalars(row).items():
            expected.setdefault(figure, {})[row["step"]] = value
    layers = [f"{figure}/layer_{n:02}" for figure in ("expert_entropy", "expert_largest_share") for n in range(2)]
    figures = ["loss", "lr", "grad_norm", "tokens", "seconds", "tokens_per_second_per_gpu"]
    assert set(expected) == {"val_loss", *figures, *layers}, "no GPU: no MFU, no memory, no communication"
    assert all(len(expected[figure]) == STEPS for figure in [*figures, *layers])
    found = board(trainings[name][-1])
    assert found.keys() == expected.keys()
    for figure, values in expected.items():
        assert found[figure] == pytest.approx(values, rel=1e-6)


def test_every_step_has_its_line(trainings: dict[str, list[Done]]) -> None:
    done = trainings["whole"][-1]
    lopsided(json.loads((done.run / "model" / "config.json").read_text()))
    lines = [line for line in done.out.splitlines() if "  loss " in line]
    row = done.history()[0]
    assert len(lines) == STEPS
    assert lines[0].startswith(f"finetune: step 1/{STEPS}  loss {row['loss']:.4f}  lr 4.00e-03  grad norm ")
    # by hand, two layers: qkv, projection, four experts' matrices; of the base also biases, sinks, norms, routers
    trained = 2 * 16 * (64 + 224 + 160 + 64 + 4 * (64 + 192 + 96 + 64))
    attention = 224 * 65 + 64 * 161 + 10
    experts = 4 * (192 * 65 + 64 * 97)
    base = 2 * 2048 * 64 + 64 + 2 * (attention + experts + 4 * 65 + 2 * 64)
    said = f"finetune: {trained:,} of {base + trained:,} parameters on this rank are trained"
    assert done.out.splitlines().count(said) == 1
    assert row["tokens_per_second_per_gpu"] == pytest.approx(row["tokens"] / row["seconds"])


# ---- figures by hand ----------------------------------------------------------------------------------------------


def test_entropy_and_largest_share() -> None:
    from training.callbacks.expert_load import entropy, largest_share

    counts = torch.tensor([[5.0, 5, 5, 5], [20, 0, 0, 0], [10, 10, 0, 0]], dtype=torch.float64)
    assert entropy(counts).tolist() == pytest.approx([1, 0, 0.5])
    assert largest_share(counts).tolist() == pytest.approx([0.25, 1, 0.5])


@pytest.fixture
def alone() -> Iterator[None]:
    from modeling import inference

    inference.initialize()
    yield
    inference.shutdown()


@pytest.mark.parametrize("recompute", [{}, {"recompute_granularity": "full"}], ids=["plain", "recomputed"])
def test_load_equals_a_plain_count(alone: None, recompute: dict[str, Any]) -> None:
    """Each token's best experts, from the router's own inputs and weights."""
    from megatron.core.transformer.moe.router import Router

    from modeling import inference
    from tests.modeling.test_expert_lora import CONFIG, EXPERTS, LAYERS, LENGTH, randomize
    from training.callbacks.expert_load import ExpertLoad

    if recompute:
        recompute = recompute | {"recompute_method": "uniform", "recompute_num_layers": 1}
    model = inference.build_model(CONFIG, seq_length=LENGTH, dtype=torch.float32, **recompute).train()
    randomize(model)
    expected = torch.zeros(LAYERS, EXPERTS)

    def count(router: Any, inputs: tuple[torch.Tensor], _: Any) -> None:
        scores = inputs[0].reshape(-1, CONFIG.hidden_size) @ router.weight.T + router.bias
        for token in scores.topk(CONFIG.experts_per_token).indices.tolist():
            for expert in token:
                expected[router.layer_number - 1, expert] += 1

    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(count)
    load = ExpertLoad(LAYERS, EXPERTS)
    load.watch(model)
    tokens = torch.randint(0, 104, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)
    for load.counting in (False, True):
        expected.zero_()
        model(tokens, torch.arange(LENGTH).expand(2, -1), mask, labels=tokens).mean().backward()
    expected /= 2 if recompute else 1  # the layers ran twice
    assert load.counts.sum(dim=1).tolist() == [2 * LENGTH * CONFIG.experts_per_token] * LAYERS
    assert load.counts.tolist() == expected.tolist()


def test_time_in_kernels_that_overlap_counts_once() -> None:
    from training.callbacks.communication_share import CommunicationShare, union_ns

    assert union_ns([(0, 10), (5, 10), (30, 5), (31, 2), (100, 1)]) == 15 + 5 + 1
    assert union_ns([]) == 0
    idle = CommunicationShare()
    idle.start()
    assert idle.stop(1.0) is None, "gloo's waiting is no figure"


def test_a_pipeline_stage_without_tokens_counts_none(alone: None, tmp_path: Path) -> None:
    """NeMo gives tokens to the first stage alone; every training over pipeline stages ended in an AttributeError."""
    from tests.modeling.test_expert_lora import CONFIG
    from training.callbacks.step_metrics import StepMetrics

    watch = StepMetrics("finetune", tmp_path / "history.jsonl", 1, CONFIG, None)
    stage = torch.nn.Identity().train()
    watch._count(stage, (), {"input_ids": None, "position_ids": None})
    assert watch.work.tolist() == [0, 0, 0]
    watch._count(stage, (), {"input_ids": torch.ones(2, 5, dtype=torch.long)})
    assert watch.work[0] == 10


def test_a_line_and_its_scalars() -> None:
    from training.callbacks.step_metrics import line, scalars

    gpu = ROW | {"mfu": 0.412, "memory_gb": 61.24, "communication_share": 0.08}
    assert line(ROW, 40) == (
        "step 7/40  loss 1.2500  lr 2.00e-04  grad norm 0.50  1,280 tokens/s/GPU  busiest expert 40%"
    )
    assert line(gpu, 40).endswith("1,280 tokens/s/GPU  MFU 41.2%  61.2 GB  communication 8%  busiest expert 40%")
    flat = scalars(ROW)
    assert flat["expert_largest_share/layer_01"] == 0.25
    assert "step" not in flat


# ---- services -----------------------------------------------------------------------------------------------------


def test_what_stands_in_the_way_of_a_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from recipes.schema import logger_checks
    from training import loggers

    monkeypatch.setattr(logger_checks, "_logged_in", lambda: False)
    assert list(logger_checks.obstacles("tensorboard", ())) == []
    (missing_key,) = logger_checks.obstacles("wandb", {"PATH"})
    assert "needs WANDB_API_KEY: export it" in missing_key
    assert list(logger_checks.obstacles("wandb", {"WANDB_API_KEY"})) == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="logger=mlflow needs the package mlflow: pip install mlflow"):
        loggers.loggers_of("mlflow", tmp_path, "run", 0)
    assert list(logger_checks.obstacles("trackio", (), packages=False)) == []


def test_wandb_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from training.loggers import loggers_of

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for _ in range(2):
        _, logger = loggers_of("wandb", tmp_path, "run finetune", 0)
        run: Any = logger
        run.log_metrics({"loss": 1.25}, 7)
        assert run.experiment.summary["loss"] == 1.25
        assert run.experiment.id == (tmp_path / "tracking" / "wandb.id").read_text(), "a resumed run goes on in its own"
        run.experiment.finish()
    assert list((tmp_path / "tracking").rglob("*.wandb"))


def test_trackio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Against a stand-in: trackio's dependencies cannot be installed beside NeMo's (pillow)."""
    from training import loggers

    calls: list[Any] = []
    stand_in: Any = SimpleNamespace(
        init=lambda **given: calls.append(given),
        log=lambda metrics, step: calls.append((metrics, step)),
        finish=lambda: calls.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    monkeypatch.setattr(loggers, "obstacles", lambda *_: iter(()))
    _, logger = loggers.loggers_of("trackio", tmp_path, "run finetune", 0)
    logger.log_metrics({"loss": 1.25}, 7)
    logger.finalize("success")
    started = {"project": "gpt-oss", "name": "run finetune", "resume": "allow"}
    assert calls == [started, ({"loss": 1.25}, 7), "finished"]
