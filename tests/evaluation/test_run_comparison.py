"""Runs side by side: every figure is that of the run's own files, and the page stands on its own."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from common.errors import ConfigurationError, DataError
from common.repository import REPOSITORY
from data_prep.prepared import Ticket, load_prepared
from evaluation import report
from evaluation.findings import Goal
from evaluation.run_comparison import RunComparison, console_table
from evaluation.run_comparison_page import write_comparison
from evaluation.run_figures import read_run
from evaluation.weight_changes import Change
from launch.commands.compare import compare_runs
from pipeline.loading import make_run, write_run
from pipeline.run_folder import RunFolder
from pipeline.stage import Details, record, stage_named
from tests.browser import look, needs_browser
from tests.evaluation.conftest import write_prepared
from tests.evaluation.test_report import guesses

TINY = REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py"
LONG = "a_run_whose_name_has_no_blank_and_is_" + "longer_than_a_phone_is_wide_" * 3
POINTS = [(f"lr-{lr}_dim-{dim}", lr, dim, right)
          for (lr, dim), right in zip([(lr, dim) for lr in ("1e-3", "4e-3") for dim in (4, 8, 16)],
                                      (0.3, 0.45, 0.5, 0.7, 0.9, 0.85), strict=True)]  # fmt: skip


def write_finished(run: RunFolder, tickets: Sequence[Ticket], right: float, seed: int) -> None:
    """A run folder as its stages leave it, without checkpoints."""
    write_run(run)
    prepared = load_prepared(run.path.parent / "data")
    gold = [ticket.label for ticket in tickets]
    models = {"base": guesses(gold, 0.1, 0), "tuned": guesses(gold, right, seed)}
    for name, folder in (
        ("prepare", run.data),
        ("import", run.base),
        ("model", Path(run.hf)),
        ("pretrain", run.pretrain),
    ):
        folder.mkdir()
        record(stage_named(name), run, Details("done", 2.0))
    run.finetune.mkdir()
    rows = [{"step": i, "loss": 3 * (1 - right) + 2 / i, "tokens": 1000 + seed, "seconds": 0.5} for i in range(1, 31)]
    rows += [{"step": step, "val_loss": 3 * (1 - right) + 1 / step} for step in (15, 30)]
    rows[9]["memory_gb"] = 40.0 + seed
    (run.finetune / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record(stage_named("finetune"), run, Details("adapter", 20.0 + seed))
    run.evaluation.mkdir()
    report.write_evaluation(run.evaluation, prepared, "test", tickets, models, report.About({}), Goal())
    record(stage_named("evaluate"), run, Details("macro-F1", 7.5))
    changes = [Change(module, 0, None, 2.0, right * scale, [right * scale, right * scale / 2])
               for module, scale in (("self_attention.linear_qkv", 0.5), ("experts.linear_fc1", 0.1))]  # fmt: skip
    (run.path / "inspection").mkdir()
    (run.path / "inspection" / "inspect.json").write_text(json.dumps({"weights": [asdict(each) for each in changes]}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six finished runs, one with a long name that answered the same tickets, and one that still trains."""
    folder = tmp_path_factory.mktemp("runs")
    write_prepared(folder / "data", training=120, test=96)
    tickets = load_prepared(folder / "data").test
    made = []
    for seed, (name, lr, dim, right) in enumerate([*POINTS, (LONG, "2e-3", 2, 0.4)], 1):
        run = make_run(TINY, [f"name={name}", f"optim.config.lr={lr}", f"peft.dim={dim}"], folder)
        write_finished(run, tickets, right, seed)
        made.append(run.path)
    training = make_run(TINY, ["name=training"], folder)
    shutil.copytree(made[0], training.path)
    write_run(training)
    for name in ("finetune", "evaluate"):
        (training.path / "stages" / f"{name}.json").unlink()
    return [*made, training.path]


def compared(folders: Sequence[Path]) -> RunComparison:
    return RunComparison([read_run(folder, folder.name) for folder in folders])


def answers_of(run: Path) -> tuple[list[str], list[str]]:
    """Labels and the tuned model's answers, by this test's own reading."""
    rows = [json.loads(line) for line in (run / "evaluation" / "predictions.jsonl").read_text().splitlines()]
    own = [row for row in rows if row["system"] == "tuned"]
    return [row["label"] for row in own], [row["prediction"] for row in own]


def test_figures_are_those_of_the_files(runs: list[Path], tmp_path: Path) -> None:
    comparison = compared(runs)
    write_comparison(tmp_path, comparison)
    with (tmp_path / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [path.name for path in runs]
    for seed, (row, path) in enumerate(zip(rows[:7], runs, strict=False), 1):
        gold, given = answers_of(path)
        assert float(row["macro_f1"]) == pytest.approx(f1_score(gold, given, average="macro"))
        assert float(row["macro_f1_low"]) < float(row["macro_f1"]) < float(row["macro_f1_high"])
        assert float(row["accuracy"]) == pytest.approx(np.mean(np.array(gold) == given))
        assert (int(row["steps"]), int(row["tokens"])) == (30, 30 * (1000 + seed))
        assert float(row["training_seconds"]) == pytest.approx(15)
        assert (float(row["finetune_seconds"]), float(row["evaluate_seconds"])) == (20.0 + seed, 7.5)
        assert float(row["memory_gb"]) == 40.0 + seed
        assert int(row["validation_step"]) == 30
    assert float(rows[4]["relative_change"]) == pytest.approx((0.45**2 + 0.09**2) ** 0.5 / 8**0.5)
    effective = np.exp(-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)))
    assert float(rows[4]["effective_rank"]) == pytest.approx(effective)
    assert rows[7]["waits_for"] == "finetune"
    assert rows[7]["macro_f1"] == ""


def test_only_settings_that_differ_are_shown(runs: list[Path]) -> None:
    comparison = compared(runs)
    assert comparison.settings == ["optim.config.lr", "peft.dim"]
    assert comparison.runs[4].settings["optim.config.lr"] == "0.004"
    assert comparison.runs[4].settings["peft"] == "modeling.expert_lora.GptOssLoRA"
    assert comparison.runs[7].settings["peft.dim"] == "16"


def test_each_is_tested_against_the_best_on_the_same_tickets(runs: list[Path]) -> None:
    comparison = compared(runs)
    assert comparison.best is not None
    assert comparison.best.name == "lr-4e-3_dim-8"
    gold, best = answers_of(runs[4])
    raw = {}
    for path in (*runs[:4], *runs[5:7]):
        _, given = answers_of(path)
        gained = sum(a == g != b for g, a, b in zip(gold, given, best, strict=True))
        lost = sum(a != g == b for g, a, b in zip(gold, given, best, strict=True))
        test = comparison.tests[path.name]
        assert (test.gained, test.lost) == (gained, lost)
        raw[path.name] = binomtest(gained, gained + lost).pvalue
        assert test.p_value == pytest.approx(raw[path.name])
        assert test.macro_f1 == pytest.approx(
            f1_score(gold, given, average="macro") - f1_score(gold, best, average="macro")
        )
    assert len(comparison.tests) == 6
    ordered = sorted(raw, key=lambda name: raw[name])
    holm = np.maximum.accumulate([min(1, (6 - i) * raw[name]) for i, name in enumerate(ordered)])
    assert [comparison.p_values[name] for name in ordered] == pytest.approx(holm)
    assert comparison.no_worse == [ordered[-1]] == ["lr-4e-3_dim-16"]


def test_other_tickets_leave_the_tests_out(runs: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs[0], other)
    file = other / "evaluation" / "predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["id"] += "x"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparison = compared([*runs[:2], other])
    assert comparison.best is None
    assert comparison.tests == {}
    assert comparison.notes == [
        "The runs answered different test tickets (lr-1e-3_dim-4, lr-1e-3_dim-8: 96; other: 96), so none is called the "
        "best and no paired test is made: compare those of the same data and the same evaluation.max_tickets."
    ]
    write_comparison(tmp_path, comparison)
    assert "Against the best" not in (tmp_path / "comparison.html").read_text()


def test_what_is_not_finished_says_what_it_waits_for(runs: list[Path], tmp_path: Path) -> None:
    comparison = compared(runs)
    assert comparison.notes == ["training is not finished: it waits for stage finetune."]
    assert "waits for finetune" in console_table(comparison)
    stale = tmp_path / "stale"
    shutil.copytree(runs[0], stale)
    note = json.loads((stale / "stages" / "finetune.json").read_text())
    (stale / "stages" / "finetune.json").write_text(json.dumps(note | {"fingerprint": "of another training"}))
    assert read_run(stale, "stale").waits_for == "evaluate"
    (runs[0] / "data").rmdir()  # as on a machine to which only small files were copied
    assert read_run(runs[0], "copied").waits_for is None
    (runs[0] / "data").mkdir()


def test_weights_that_are_not_here_are_said_to_be_missing(runs: list[Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "copied")
    shutil.rmtree(tmp_path / "copied" / "inspection")
    comparison = compared([tmp_path / "copied", runs[1]])
    assert comparison.runs[0].changes is None
    assert comparison.notes[0].startswith("copied: the checkpoints are not here")


def test_what_cannot_be_compared_is_named(runs: list[Path], tmp_path: Path) -> None:
    for folders, words in (
        ([runs[0], tmp_path / "none"], "none is the folder of no run and of no sweep"),
        ([runs[0]], "name two run folders or more"),
        ([runs[0], runs[1], runs[0]], "each once"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            compare_runs(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_figures_are_named(runs: list[Path], tmp_path: Path) -> None:
    for name, text in (("metrics.json", "{}"), ("predictions.jsonl", '{"system": "tuned"}\n')):
        shutil.copytree(runs[0], tmp_path / name)
        (tmp_path / name / "evaluation" / name).write_text(text)
        with pytest.raises(DataError, match=re.escape(f"evaluation/{name} is damaged")):
            read_run(tmp_path / name, "damaged")


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    write_comparison(folder, compared(runs))
    return folder / "comparison.html"


def test_the_page_needs_nothing_else(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"<(script|link|img|iframe)|@import|url\(", text)
    assert text.count("<svg") == 3
    assert text.count(LONG) > 5
    assert "on these very tickets" in text
    assert "so may its lead be. 1 of the other 6 cannot be told from it" in " ".join(text.split())


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_in_a_browser(page: Path, tmp_path: Path, width: int) -> None:
    seen = look(page, tmp_path, width)
    assert seen.console == []
    assert seen.width <= seen.window == width
    assert len(seen.pictures) == 3
    for picture in seen.pictures:
        assert picture["height"] > 60
        assert 0 <= picture["left"] < picture["right"] <= width
    for text in seen.texts:
        assert text["size"] >= 10, text
        assert text["scrolls"] or 0 <= text["left"] <= text["right"] <= width + 1, text
    assert seen.picture.stat().st_size > 20_000
