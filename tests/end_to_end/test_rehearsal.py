"""The whole pipeline on real NeMo, in small."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Rehearsal, nemo_run

pytestmark = pytest.mark.slow

STAGES = ("model", "prepare", "import", "pretrain", "finetune", "evaluate", "export")


def test_every_stage_runs_and_says_what_it_made(rehearsal: Rehearsal) -> None:
    assert rehearsal.first.status == 0, rehearsal.first.err
    for stage in STAGES:
        assert (rehearsal.run / "stages" / f"{stage}.json").is_file()
        assert f"{stage}:" in rehearsal.first.out


def test_export_equals_the_model_in_training(
    rehearsal: Rehearsal, record_property: Callable[[str, object], None]
) -> None:
    details = json.loads((rehearsal.run / "stages" / "export.json").read_text())["details"]
    record_property("logits", details["largest_logit_difference"])
    assert details["largest_logit_difference"] <= 1e-3
    kept = load_file(rehearsal.run / "evaluation" / "logits.safetensors")
    config = json.loads((rehearsal.run / "exported" / "config.json").read_text())
    assert kept["tokens"].shape[1] > config["sliding_window"], "prompts must be longer than the window"
    assert kept["logits"].std() > 0.2, "logits without spread would prove nothing"


def test_export_holds_what_a_server_needs(rehearsal: Rehearsal) -> None:
    names = {path.name for path in (rehearsal.run / "exported").iterdir()}
    wanted = {"config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json"}
    assert wanted | {"tokenizer_config.json", "manifest.json"} <= names


def test_export_differs_from_the_base_where_lora_trained(rehearsal: Rehearsal) -> None:
    verified = nemo_run("convert", "verify", rehearsal.run / "base", rehearsal.run / "exported", cwd=rehearsal.cwd)
    assert verified.status == 1
    assert "largest difference" in verified.out


def test_import_is_the_very_model(rehearsal: Rehearsal) -> None:
    verified = nemo_run("convert", "verify", rehearsal.run / "model", rehearsal.run / "base", cwd=rehearsal.cwd)
    assert verified.status == 0, verified.out + verified.err
    assert " 0 different" in verified.out


def test_training_is_recorded_step_by_step(rehearsal: Rehearsal) -> None:
    rows = [json.loads(line) for line in (rehearsal.run / "finetune" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))


def test_again_everything_is_current(rehearsal: Rehearsal) -> None:
    started = time.perf_counter()
    again = rehearsal.again()
    assert again.status == 0, again.err
    assert again.out.count("current, skipped") == len(STAGES)
    assert time.perf_counter() - started < 20


def test_a_lost_export_is_made_again_and_nothing_else(rehearsal: Rehearsal) -> None:
    shard = next((rehearsal.run / "exported").glob("*.safetensors"))
    before = shard.read_bytes()
    shard.unlink()
    again = rehearsal.again()
    assert again.status == 0, again.err
    assert again.out.count("current, skipped") == len(STAGES) - 1
    assert shard.read_bytes() == before
    # what was current then has printed at the launch before
    assert "step 12/12" in nemo_run("logs", rehearsal.run, "finetune", cwd=rehearsal.cwd).out
    wrong = nemo_run("logs", rehearsal.run, "finetuning", cwd=rehearsal.cwd)
    assert "ran a stage finetuning: the last had export." in wrong.err


def test_exported_weights_are_finite(rehearsal: Rehearsal) -> None:
    for shard in (rehearsal.run / "exported").glob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(shard).values())
