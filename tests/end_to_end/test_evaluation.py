"""One fine-tuned model, three ways to its predictions; and what inspection says of it against the export."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from converters.storage.weights_reader import WeightsReader
from data_prep.prepared import load_prepared
from evaluation.inspection import ROUTED
from evaluation.predictions import Predictions
from evaluation.scoring import decode_labels
from evaluation.systems import by_endpoint, by_megatron, by_transformers
from evaluation.transformers_model import load
from launch.cli import app
from pipeline.checkpoints import start_of, tuned_of
from pipeline.run_folder import RunFolder
from tests.browser import BROWSER, look
from tests.conftest import Rehearsal
from tests.serving.stand_in import StandIn, serving

pytestmark = pytest.mark.slow

TICKETS = 12


@pytest.fixture(scope="module")
def data(rehearsal: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's data with its first test tickets only."""
    folder = tmp_path_factory.mktemp("few") / "data"
    shutil.copytree(rehearsal.run / "data", folder)
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").split("\n")[:TICKETS]
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_the_stage_writes_all_three_files(rehearsal: Rehearsal) -> None:
    folder = rehearsal.run / "evaluation"
    figures = json.loads((folder / "metrics.json").read_text())
    details = json.loads((rehearsal.run / "stages" / "evaluate.json").read_text())["details"]
    macro_f1 = {name: system["metrics"]["macro_f1"] for name, system in figures["systems"].items()}
    assert list(macro_f1) == ["majority class", "TF-IDF + logistic regression", "base", "tuned"]
    assert details["macro_f1"] == pytest.approx(macro_f1)
    assert set(figures["comparisons"]) == set(macro_f1) - {"tuned"}
    page = (folder / "report.html").read_text()
    assert "Loss of pretraining" in page
    assert "Loss of fine-tuning" in page
    assert "it reads tickets and writes names of queues, and routes wrong" in page
    configuration = html.unescape(page.partition("<h2>Configuration</h2>")[2].partition("</pre>")[0])
    assert (rehearsal.run / "recipe.yaml").read_text().strip() in configuration


def test_megatron_transformers_and_a_server_agree(rehearsal: Rehearsal, data: Path) -> None:
    """EP2 is what the stage ran at; TP2 reads the adapter's checkpoint; the others have the exported folder."""
    prepared, exported = load_prepared(data), rehearsal.run / "exported"
    labels = prepared.labels
    lines = (rehearsal.run / "evaluation" / "predictions.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["system"] == "tuned"][:TICKETS]
    assert [row["id"] for row in rows] == [ticket.id for ticket in prepared.test]
    log_probabilities = np.array([[row["log_probabilities"][label] for label in labels] for row in rows])
    checkpoint = tuned_of(RunFolder.open(rehearsal.run))
    sizes = {"tensor": 2, "expert": 1, "pipeline": 1}
    found: dict[str, Predictions] = by_megatron(checkpoint, data, prepared, "test", 16, sizes)
    found |= by_transformers(exported, prepared, "test", 16)
    with serving(StandIn(exported)) as server:
        served, notes = by_endpoint(server.url, exported, prepared, "test")
    found |= {f"served {name}": predictions for name, predictions in served.items()}
    assert notes == []
    assert len(found) == 3
    for name, predictions in found.items():
        assert predictions.answers == [row["prediction"] for row in rows], name
        np.testing.assert_allclose(predictions.log_probabilities, log_probabilities, atol=2e-4, err_msg=name)  # type: ignore[arg-type]
        assert predictions.valid is not None
        assert predictions.valid.tolist() == [row["free_answer_is_a_label"] for row in rows], name
    assert log_probabilities.std() > 1, "a model that is indifferent would prove nothing"


def test_the_command_on_an_exported_folder(rehearsal: Rehearsal, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    arguments = ["evaluate", str(rehearsal.run / "exported"), str(data), "--out", str(out)]
    ran = CliRunner().invoke(app, [*arguments, "--threshold-for-precision", "0.5"])
    assert ran.exit_code == 0, ran.output
    assert {path.name for path in out.iterdir()} == {
        "manifest.json",
        "metrics.json",
        "predictions.jsonl",
        "report.html",
    }
    figures = json.loads((out / "metrics.json").read_text())
    assert (figures["tickets"], figures["split"], figures["goal"]["precision"]) == (TICKETS, "test", 0.5)
    assert f"{TICKETS} test tickets" in ran.output


@pytest.fixture(scope="module")
def inspected(rehearsal: Rehearsal) -> tuple[RunFolder, dict[str, Any]]:
    """A run that kept two checkpoints: its last one, and a copy under the name of an earlier one."""
    folder = rehearsal.cwd / "runs" / "inspected"
    shutil.copytree(rehearsal.run, folder, symlinks=True)
    run = RunFolder.open(folder)
    last = tuned_of(run)
    shutil.copytree(last, last.with_name("step=6-val_loss=9.900000"))
    ran = CliRunner().invoke(app, ["inspect", str(folder)])
    assert ran.exit_code == 0, ran.output
    return run, json.loads((folder / "inspection" / "inspect.json").read_text())


def test_norms_are_those_of_the_exported_weights(inspected: tuple[RunFolder, dict[str, Any]]) -> None:
    run, facts = inspected
    before = WeightsReader(start_of(run) / "weights")
    after = {name: value for file in run.exported.glob("*.safetensors") for name, value in load_file(file).items()}
    by_place = {(each["module"], each["layer"], each["expert"]): each for each in facts["weights"]}
    assert len(by_place) == len(facts["weights"]) == 4 * (2 + 2 * 4)
    moved = 0
    for layer in range(4):
        for expert in range(4):
            old = before.read("decoder.layers.mlp.experts.experts.linear_fc2.weight", layer, expert)
            new = after[f"model.layers.{layer}.mlp.experts.down_proj"][expert].T
            found = by_place["experts.linear_fc2", layer, expert]
            assert found["weight_norm"] == pytest.approx(float(old.norm()), rel=1e-5)
            assert found["change_norm"] == pytest.approx(float((new - old).norm()), rel=1e-3, abs=1e-6)
            values = torch.linalg.svdvals((new - old).double())[:16]
            np.testing.assert_allclose(found["singular_values"], values, atol=1e-4 * float(values[0]) + 1e-6)
            if found["change_norm"]:  # no router picks an expert that did not move
                moved += 1
                assert 1 < found["effective_rank"] <= 16
    assert moved >= 8
    packs = np.load(run.data / "packed" / "training_1024.npy", allow_pickle=True)
    assert facts["steps_an_epoch"] == pytest.approx(len(packs) / 4)
    assert [row["step"] for row in facts["history"] if "loss" in row] == list(range(1, 13))


def test_picks_are_those_of_the_export_in_transformers(inspected: tuple[RunFolder, dict[str, Any]]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, facts = inspected
    model: Any = AutoModelForCausalLM.from_pretrained(run.exported, dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(run.exported)
    picks = np.zeros((4, 4), int)

    def count(layer: int) -> Any:
        return lambda module, given, output: np.add.at(picks[layer], output[1].flatten().numpy(), 1)

    for layer, block in enumerate(model.model.layers):
        block.mlp.router.register_forward_hook(count(layer))
    prompts = [ticket.input for ticket in load_prepared(run.data).test[:ROUTED]]
    tokens = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    with torch.no_grad():
        for one in tokens:
            model(torch.tensor([one]))
    before, copied, best = facts["systems"]
    assert (before, copied) == ("before", "step 6, validation loss 9.900")
    assert best.startswith("step 12, validation loss ")
    assert np.abs(np.array(facts["systems"][best]["picks"]) - picks).sum() <= picks.sum() // 1000
    total = 2 * sum(map(len, tokens))  # two experts a token
    for system in facts["systems"].values():
        assert np.array(system["picks"]).sum(axis=1).tolist() == [total] * 4


def test_the_same_tickets_are_answered_by_every_checkpoint(
    inspected: tuple[RunFolder, dict[str, Any]], tmp_path: Path
) -> None:
    run, facts = inspected
    _, copied, best = facts["systems"].values()
    assert copied == best
    assert len({ticket["label"] for ticket in facts["tickets"]}) == len(facts["tickets"]) == 6
    prepared = load_prepared(run.data)
    prompts = {ticket.id: ticket.input for ticket in prepared.test}
    asked = [prompts[ticket["id"]] for ticket in facts["tickets"]]
    scores = decode_labels(*load(run.exported), asked, list(prepared.completions.values()), batch_size=6)
    assert best["predictions"] == [prepared.labels[i] for i in scores.best]
    assert all(isinstance(answer, str) and answer for answer in best["free_answers"])
    if BROWSER:
        seen = look(run.path / "inspection" / "inspect.html", tmp_path, 400)
        assert seen.console == []
        assert seen.width == 400
        assert len(seen.pictures) == 7
        assert min(text["size"] for text in seen.texts) >= 10
