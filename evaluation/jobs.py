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


@dataclass(frozen=True)
class KernelJob:
    """Run every kernel that a training would use, against transformers at a small size, then timed at a real one.

    Attributes:
        packed: whether several tickets share a sequence.
        model: whose first `layers` layers are timed, with LoRA on attention and experts; a name or a config.json.
        seq_length: of the timed layers, in tokens.
    """

    target: ClassVar[str] = "evaluation.kernel_check:check_kernels"
    precision: Precision
    packed: bool
    model: str = "gpt-oss-20b"
    layers: int = 2
    seq_length: int = 2048


@dataclass(frozen=True)
class KernelReport:
    """What the kernels gave.

    Attributes:
        attention: backend that was used.
        logits: largest difference to transformers in fp32, over the logits' standard deviation.
        gradients: largest norm of a parameter's difference over the norm of its gradient.
        packed: largest difference of packed sequences to each alone, over the standard deviation; None if not packed.
        seconds: of a training step of the timed layers, the median.
        tokens_per_second: that the timed layers train.
        memory_gb: peak of allocated memory meanwhile; 0 on a CPU.
        mfu: model FLOPs over what the GPU could do; None where its peak is not known.
    """

    attention: str
    logits: float
    gradients: float
    packed: float | None
    seconds: float
    tokens_per_second: float
    memory_gb: float
    mfu: float | None
