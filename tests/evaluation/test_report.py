"""The three files of an evaluation: their figures are one another's, and the page stands on its own."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from data_prep.prepared import load_prepared
from evaluation import report
from evaluation.baselines import nearest
from evaluation.findings import Findings, Goal
from evaluation.predictions import Predictions
from tests.browser import look, needs_browser
from tests.evaluation.conftest import LABELS, write_prepared

NO_DIVISION: dict[str, Any] = {"zero_division": 0}
"""For scikit-learn, whose default "warn" type checkers take for the type."""
ATTACK = "<img src=x onerror=alert(1)></pre><script>alert(1)</script>"
HISTORY = [{"step": i, "loss": 3 / i, "lr": 1e-3} for i in range(1, 41)] + [{"step": 40, "val_loss": 0.1}]


def guesses(gold: list[str], right: float, seed: int) -> Predictions:
    """A model's answers, of which about the share `right` is right, and surer where they are."""
    random = np.random.default_rng(seed)
    true = np.array([LABELS.index(label) for label in gold])
    best = np.where(random.random(len(true)) < right, true, random.integers(0, len(LABELS), len(true)))
    logits = random.normal(-3, 0.5, (len(true), len(LABELS)))
    logits[np.arange(len(true)), best] = random.uniform(-1, 0, len(true)) + (best == true)
    weights = np.exp(logits)
    return Predictions(LABELS, best, logits, weights / weights.sum(1, keepdims=True), random.random(len(true)) < 0.9)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Findings]:
    data = write_prepared(tmp_path_factory.mktemp("data") / "data", training=120, test=96)
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    attacks = [json.dumps(row | {"ticket": f"{row['ticket']} {ATTACK}"}) + "\n" for row in rows]
    (data / "test.jsonl").write_text("".join(attacks))
    prepared = load_prepared(data)
    gold = [ticket.label for ticket in prepared.test]
    models = {"base": guesses(gold, 0.3, 1), "tuned": guesses(gold, 0.8, 2)}
    folder = tmp_path_factory.mktemp("out")
    about = report.About({}, "name: run\npeft: &x <b>\n", {"fine-tuning": HISTORY})
    return folder, report.write_evaluation(folder, prepared, "test", prepared.test, models, about, Goal(0.9, 0.5))


def test_every_row_of_every_system_is_written(written: tuple[Path, Findings]) -> None:
    folder, _ = written
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    systems = ["majority class", "TF-IDF + logistic regression", "base", "tuned"]
    assert Counter(row["system"] for row in rows) == dict.fromkeys(systems, 96)
    for row in rows:
        if "probabilities" in row:
            assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        if row["system"] in ("base", "tuned"):
            best = max(row["log_probabilities"], key=row["log_probabilities"].get)
            assert best == row["prediction"]
            assert isinstance(row["free_answer_is_a_label"], bool)


def test_metrics_follow_from_the_predictions(written: tuple[Path, Findings]) -> None:
    folder, findings = written
    figures = json.loads((folder / "metrics.json").read_text())
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    for name, system in figures["systems"].items():
        own = [row for row in rows if row["system"] == name]
        gold, guess = [row["label"] for row in own], [row["prediction"] for row in own]
        assert system["metrics"]["macro_f1"] == pytest.approx(f1_score(gold, guess, average="macro", **NO_DIVISION))
        if system["valid_answers"] is not None:
            assert system["valid_answers"] == pytest.approx(np.mean([row["free_answer_is_a_label"] for row in own]))
    assert findings.subject == "tuned"
    base, tuned = ([row for row in rows if row["system"] == name] for name in ("base", "tuned"))
    gained = sum(a["prediction"] != a["label"] == b["prediction"] for a, b in zip(base, tuned, strict=True))
    assert figures["comparisons"]["base"]["gained"] == gained > 30
    assert figures["comparisons"]["base"]["p_value"] < 1e-4
    assert figures["systems"]["tuned"]["at_precision"]["precision"] >= 0.9
    assert figures["systems"]["tuned"]["at_coverage"]["coverage"] >= 0.5
    assert figures["noise"]["tickets"] == 120


def test_the_page_needs_nothing_else_and_runs_nothing(written: tuple[Path, Findings]) -> None:
    page = (written[0] / "report.html").read_text()
    assert not re.search(r"<(script|link|img|iframe)|@import|url\(", page)
    assert "&lt;script&gt;alert(1)" in page
    assert "peft: &amp;x &lt;b&gt;" in page
    assert page.count("<svg") == 6


def test_nearest_sentences_are_voted_by_closeness(hf_folder: Path, prepared_folder: Path) -> None:
    """Any encoder will do; this one is random, but alike texts have alike vectors."""
    prepared = load_prepared(prepared_folder)
    found = nearest(prepared, prepared.training[:12], hf_folder)
    assert found.answers == [ticket.label for ticket in prepared.training[:12]]  # each is its own neighbour
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_in_a_browser(written: tuple[Path, Findings], tmp_path: Path, width: int) -> None:
    seen = look(written[0] / "report.html", tmp_path, width)
    assert seen.console == []
    assert seen.width <= seen.window == width
    assert len(seen.pictures) == 6
    for picture in seen.pictures:
        assert picture["name"]
        assert picture["height"] > 60
        assert picture["marks"] > 8
        assert 0 <= picture["left"] < picture["right"] <= width
    for text in seen.texts:
        assert text["size"] >= 10, text
        assert text["scrolls"] or 0 <= text["left"] <= text["right"] <= width + 1, text
    assert seen.picture.stat().st_size > 20_000
