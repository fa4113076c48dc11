"""The torchrun jobs of the evaluation: dataclasses that the caller fills and the started processes read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from modeling.layouts import Layout
from modeling.precision import Precision
from pipeline.checkpoints import Parts


@dataclass(frozen=True)
class ModelJob:
    """Models by name, and how they are loaded: one after another, each over all processes.

    Attributes:
        data: prepared folder whose tickets they answer.
        seq_length: longest sequence, in tokens.
    """

    systems: dict[str, Parts]
    data: Path
    layout: Layout
    seq_length: int
    precision: Precision


@dataclass(frozen=True)
class ScoreJob(ModelJob):
    """Score the labels of a split's tickets; the result is for `scoring.load_scores`."""

    target: ClassVar[str] = "evaluation.megatron_model:score_split"
    split: str = "test"
    batch_size: int = 16


@dataclass(frozen=True)
class InspectJob(ModelJob):
    """Answer some tickets and count the experts that routers pick; the result is JSON."""

    target: ClassVar[str] = "evaluation.inspection:inspect_models"
