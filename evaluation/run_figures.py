"""The figures of one run, read from its folder alone: settings, losses, scores, answers, weights, and cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from common.errors import CheckpointError, DataError
from common.fields import to_tree
from common.progress import Progress, quiet
from evaluation.metrics import Interval
from evaluation.weight_changes import Change, changes
from pipeline.checkpoints import base_of, exported_parts
from pipeline.history import last_step, read_history
from pipeline.pending import first_unrecorded
from pipeline.run_folder import RunFolder
from pipeline.stage import details_of, record_of, stages_of
from recipes.schema.recipe import Recipe
from recipes.schema.trees import LAZY

SUBJECT, BASE = "tuned", "base"
Answer = tuple[str, str, str]
"""A test ticket's id, its label, and the label that the tuned model gave it."""


@dataclass(frozen=True)
class Score:
    """Macro-F1 and accuracy of a system, as its evaluation wrote them."""

    macro_f1: float
    macro_f1_interval: Interval
    accuracy: float


@dataclass(frozen=True, eq=False)
class Ran:
    """A run as its folder tells it.

    Attributes:
        waits_for: the stage that is to be done before the run can be compared; None where it is evaluated.
        settings: every field of its recipe as text, by its key.
        history: rows of fine-tuning's history.jsonl.
        seconds: of each finished stage, when it last ran.
        scores: of the base and the tuned model; empty for conversations.
        answers: of the tuned model, in the order of the test tickets.
        changes: of its matrices by fine-tuning; None where neither `inspect` nor the checkpoints tell.
    """

    name: str
    waits_for: str | None
    settings: dict[str, str]
    history: list[dict[str, Any]]
    seconds: dict[str, float]
    scores: dict[str, Score]
    answers: list[Answer]
    changes: list[Change] | None

    @property
    def score(self) -> Score | None:
        """The tuned model's."""
        return self.scores.get(SUBJECT)

    @property
    def steps(self) -> int:
        return last_step(self.history)

    @property
    def tokens(self) -> int:
        """That fine-tuning read, padding included."""
        return sum(int(row.get("tokens") or 0) for row in self.history)

    @property
    def training_seconds(self) -> float:
        """That its steps took, without start, validation and saving."""
        return sum(float(row.get("seconds") or 0) for row in self.history)

    @property
    def memory_gb(self) -> float | None:
        """Largest of a GPU's; None on a CPU, where none is measured."""
        return max((float(row["memory_gb"]) for row in self.history if "memory_gb" in row), default=None)

    @property
    def validation(self) -> tuple[float, int] | None:
        """The lowest validation loss and its step."""
        rows = [(float(row["val_loss"]), int(row["step"])) for row in self.history if row.get("val_loss") is not None]
        return min(rows, default=None)


def read_run(folder: Path, name: str, progress: Progress = quiet) -> Ran:
    """Read a run folder; nothing outside of it, and no NeMo, is needed.

    Raises:
        ConfigurationError: it is no run folder. DataError: a file of its evaluation is damaged.
    """
    run = RunFolder.open(folder)
    waits_for = first_unrecorded(run, "evaluate")
    evaluated = waits_for is None
    return Ran(
        name,
        waits_for,
        settings_of(run.recipe),
        read_history(run.finetune),
        {
            stage.name: details_of(stage, run).seconds
            for stage in stages_of(run.recipe)
            if record_of(stage, run).is_file()
        },
        _scores(run.evaluation) if evaluated else {},
        _answers(run.evaluation) if evaluated else [],
        _changes(run, progress) if evaluated else None,
    )


def settings_of(recipe: Recipe) -> dict[str, str]:
    """Every field of a recipe as text, by its key; its name is none."""

    def flat(tree: Mapping[str, Any], before: str) -> Iterable[tuple[str, str]]:
        for key, value in tree.items():
            whole = before.rstrip(".") if key == LAZY else before + key
            if isinstance(value, dict) and value:
                yield from flat(value, f"{whole}.")
            elif whole != "name":
                yield whole, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return dict(flat(to_tree(recipe), ""))


def _scores(evaluation: Path) -> dict[str, Score]:
    file = evaluation / "metrics.json"
    if not file.is_file():
        return {}  # of conversations
    try:
        systems = json.loads(file.read_text(encoding="utf-8"))["systems"]
        return {
            name: Score(figures["macro_f1"], tuple(figures["macro_f1_interval"]), figures["accuracy"])
            for name in (BASE, SUBJECT)
            for figures in (systems[name]["metrics"],)
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(file) from None


def _answers(evaluation: Path) -> list[Answer]:
    file = evaluation / "predictions.jsonl"
    if not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8") as lines:
            rows = [row for row in map(json.loads, lines) if row["system"] == SUBJECT]
        return [(row["id"], row["label"], row["prediction"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(file) from None


def _damaged(file: Path) -> DataError:
    return DataError(f"{file} is damaged: evaluate the run again (launch its recipe after removing that folder).")


def _changes(run: RunFolder, progress: Progress) -> list[Change] | None:
    """What `nemo-run inspect` found, else from the checkpoints where they are here."""
    try:
        weights = json.loads((run.path / "inspection" / "inspect.json").read_text(encoding="utf-8"))["weights"]
        names = [field.name for field in fields(Change)]
        return [Change(**{name: row[name] for name in names}) for row in weights]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        start, tuned = base_of(run), exported_parts(run.path)
        is_adapter = tuned.adapter is not None
        return changes(
            start.weights, tuned.adapter or tuned.weights, start.config, is_adapter=is_adapter, progress=progress
        )
    except (CheckpointError, OSError):
        return None


def total_of(measured: Sequence[Change]) -> dict[str, Any]:
    """‖ΔW‖ / ‖W‖ and the mean effective rank over all matrices."""
    weight, change = (sum(getattr(each, name) ** 2 for each in measured) for name in ("weight_norm", "change_norm"))
    ranks = [each.effective_rank for each in measured if each.effective_rank is not None]
    relative = (change / weight) ** 0.5 if weight else 0.0
    return {"relative": relative, "rank": sum(ranks) / len(ranks) if ranks else None}
