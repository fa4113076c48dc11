"""All figures of one evaluation, from the answers of its systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from data_prep.prepared import Ticket
from evaluation.calibration import Calibration, OperatingPoint, calibrate, point_for_coverage, point_for_precision
from evaluation.comparison import Comparison, compare
from evaluation.label_noise import LabelNoise
from evaluation.metrics import Metrics, compute_metrics
from evaluation.predictions import Predictions, Systems


@dataclass(frozen=True)
class Goal:
    """Target of routing without a person: a precision, or a share of the tickets."""

    precision: float = 0.95
    coverage: float = 0.8


@dataclass(frozen=True)
class SystemFindings:
    """Figures of one system.

    Attributes:
        valid_answers: share of the tickets whose answer without the constraint is a label; None for a system that has
            no other answers.
        calibration, at_precision, at_coverage: of systems that give probabilities; `at_precision` is None too where no
            threshold reaches the goal.
    """

    metrics: Metrics
    valid_answers: float | None
    calibration: Calibration | None
    at_precision: OperatingPoint | None
    at_coverage: OperatingPoint | None


@dataclass(frozen=True)
class Findings:
    """One evaluation; its last system is the one under evaluation.

    Attributes:
        comparisons: the last system minus each of the others.
        noise: of the training labels; None where it could not be estimated.
        notes: what was left out, and why.
    """

    split: str
    tickets: int
    goal: Goal
    systems: dict[str, SystemFindings]
    comparisons: dict[str, Comparison]
    noise: LabelNoise | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def subject(self) -> str:
        """Name of the system that the evaluation is about."""
        return list(self.systems)[-1]


def find(
    split: str,
    tickets: Sequence[Ticket],
    systems: Systems,
    goal: Goal,
    noise: LabelNoise | None = None,
    notes: Sequence[str] = (),
) -> Findings:
    """Figures of every system, and of the last against each other."""
    gold = [ticket.label for ticket in tickets]
    last = list(systems)[-1]
    return Findings(
        split=split,
        tickets=len(tickets),
        goal=goal,
        systems={name: _of_system(tickets, predictions, goal) for name, predictions in systems.items()},
        comparisons={
            name: compare(gold, other.answers, systems[last].answers) for name, other in systems.items() if name != last
        },
        noise=noise,
        notes=list(notes),
    )


def _of_system(tickets: Sequence[Ticket], predictions: Predictions, goal: Goal) -> SystemFindings:
    gold = [ticket.label for ticket in tickets]
    metrics = compute_metrics(gold, predictions.answers, [ticket.language for ticket in tickets])
    valid = None if predictions.valid is None else float(predictions.valid.mean())
    confidence = predictions.confidence
    if confidence is None:
        return SystemFindings(metrics, valid, None, None, None)
    correct = predictions.correct(gold)
    return SystemFindings(
        metrics,
        valid,
        calibrate(confidence, correct),
        point_for_precision(confidence, correct, goal.precision),
        point_for_coverage(confidence, correct, goal.coverage),
    )
