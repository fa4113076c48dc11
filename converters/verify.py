"""Compare two checkpoints tensor by tensor: Hugging Face (MXFP4 or plain) or NeMo, in any combination."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from converters.hf_reader import HfReader, pieces
from converters.mapping import TABLE, Entry
from converters.nemo_weights import WeightsReader
from errors import CheckpointError
from modeling.hf_config import GptOssConfig


@dataclass
class Report:
    """What a comparison found.

    Attributes:
        equal: number of Megatron tensors that are the same in every value.
        different: names of those that are not, with the largest absolute difference.
        dtypes: the dtype of each side's plain tensors; another dtype is no difference if the values are equal.
    """

    dtypes: tuple[torch.dtype, torch.dtype]
    equal: int = 0
    different: dict[str, float] = field(default_factory=dict)

    @property
    def largest(self) -> tuple[str, float]:
        """The tensor that differs most, and by how much."""
        return max(self.different.items(), key=lambda item: item[1], default=("", 0.0))


class _Side:
    """One checkpoint, seen as Megatron tensors."""

    def __init__(self, path: Path) -> None:
        self.hf = None if (path / "weights").is_dir() else HfReader(path)
        self.weights = None if self.hf else WeightsReader(path / "weights")
        context = path / "context" / "hf_config.json"
        if self.weights and not context.is_file():
            raise CheckpointError(f"{path} holds no context/hf_config.json: verify the import or the export instead.")
        self.config = self.hf.config if self.hf else GptOssConfig.from_file(context)
        self.dtype = self.hf.dtype if self.hf else self.weights.dtype("decoder.final_layernorm.weight")  # type: ignore[union-attr]

    def read(self, entry: Entry, layer: int, expert: int | None) -> torch.Tensor:
        if self.hf:
            return self.hf.nemo_part(entry, layer, expert)
        where = () if not entry.per_layer else (layer,) if expert is None else (layer, expert)
        assert self.weights is not None
        return self.weights.read(entry.nemo, *where)


def verify(a: Path, b: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
    """Compare all tensors of two checkpoints, one piece in memory at a time.

    Args:
        progress: called with pieces compared and pieces in all.
    Raises:
        CheckpointError: a side is damaged, incomplete or holds unknown tensors, or the shapes of the two differ.
    """
    left, right = _Side(a), _Side(b)
    todo = [(entry, *piece) for entry in TABLE for piece in pieces(entry, left.config)]
    for entry in TABLE:
        shapes = [(*entry.leading(side.config), *entry.shape(side.config)) for side in (left, right)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{a} and {b} are models of other sizes: {entry.nemo} is {shapes[0]} and {shapes[1]}."
            )
    report = Report((left.dtype, right.dtype))
    for done, (entry, layer, expert) in enumerate(todo, 1):
        x, y = left.read(entry, layer, expert).float(), right.read(entry, layer, expert).float()
        if torch.equal(x, y):
            report.equal += 1
        else:
            place = [str(i) for i in (layer, expert) if i is not None and entry.per_layer]
            name = f"{entry.nemo}[{', '.join(place)}]" if place else entry.nemo
            report.different[name] = float((x - y).abs().max())
        progress(done, len(todo))
    return report
