"""Compare two checkpoints tensor by tensor: Hugging Face's, OpenAI's, NeMo's or Megatron-Bridge's, any with any."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from common.errors import CheckpointError
from common.progress import Done, Progress, quiet
from converters.hf_reader import HfReader
from converters.mapping import Entry, Place, layers_of, places
from converters.nemo_folder import config_of, is_megatron
from converters.nemo_reader import NemoReader
from converters.storage.pool import run_all


@dataclass
class Report:
    """Result of a comparison.

    Attributes:
        equal: number of Megatron tensors, a layer's counted as one, with the same dtype and the same bits.
        different: names of those with other values, and the largest absolute difference; infinite at a NaN.
        dtypes: names of those stored in different dtypes, and which; their values are compared as fp32.
    """

    equal: int = 0
    different: dict[str, float] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether nothing differs at all."""
        return not self.different and not self.dtypes

    @property
    def largest(self) -> tuple[str, float]:
        """The tensor that differs most, and by how much."""
        return max(self.different.items(), key=lambda item: item[1], default=("", 0.0))


class _Side:
    """One checkpoint, seen as Megatron tensors."""

    def __init__(self, path: Path) -> None:
        self.reader = NemoReader(path) if is_megatron(path) else HfReader(path)
        if isinstance(self.reader, HfReader):
            self.config = self.reader.config
        else:
            self.config = config_of(path, "verify the import or the export instead")

    def dtype(self, entry: Entry, layer: int) -> torch.dtype:
        return self.reader.dtype(entry, layer)

    def read(self, entry: Entry, place: Place) -> torch.Tensor:
        return self.reader.read(entry, place)


def compare_checkpoints(a: Path, b: Path, progress: Progress = quiet) -> Report:
    """Compare all tensors of two checkpoints, one part in memory at a time.

    Args:
        progress: called with parts compared and parts in all.
    Raises:
        CheckpointError: a side is damaged, incomplete or holds unknown tensors, or the shapes of the two differ.
    """
    left, right = _Side(a), _Side(b)
    for entry, _ in layers_of(left.config):
        shapes = [(*entry.leading(side.config), *entry.shape(side.config)) for side in (left, right)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{a} and {b} are models of other sizes: {entry.nemo} is {shapes[0]} and {shapes[1]}."
            )
    comparison = _Comparison(left, right, progress)
    run_all(partial(comparison.compare, *part) for part in comparison.parts)
    return comparison.report()


class _Comparison:
    def __init__(self, left: _Side, right: _Side, progress: Progress) -> None:
        self.left, self.right, self.progress = left, right, progress
        tensors = list(layers_of(left.config))
        self.parts = [(e, layer, place) for e, layer in tensors for place in places(e, left.config, layer)]
        self.differences: dict[str, float] = {_name(entry, layer): 0.0 for entry, layer in tensors}
        self.different: set[str] = set()
        self.dtypes: dict[str, str] = {}
        self.done = 0
        self._lock = threading.Lock()

    def compare(self, entry: Entry, layer: int, place: Place) -> None:
        name = _name(entry, layer)
        dtypes = [side.dtype(entry, layer) for side in (self.left, self.right)]
        x, y = self.left.read(entry, place), self.right.read(entry, place)
        equal = _same_bits(x, y) if dtypes[0] == dtypes[1] else torch.equal(x.float(), y.float())
        largest = 0.0 if equal else _largest(x.float(), y.float())
        with self._lock:
            if not equal:
                self.different.add(name)
                self.differences[name] = max(self.differences[name], largest)
            if dtypes[0] != dtypes[1]:
                self.dtypes[name] = " and ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            self.done += 1
            self.progress(Done("verify", self.done, len(self.parts)))

    def report(self) -> Report:
        different = {name: value for name, value in self.differences.items() if name in self.different}
        equal = set(self.differences) - self.different - set(self.dtypes)
        return Report(len(equal), different, self.dtypes)


def _same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    return torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))


def _largest(x: torch.Tensor, y: torch.Tensor) -> float:
    difference = (x - y).abs()
    return float("inf") if difference.isnan().any() else float(difference.max())


def _name(entry: Entry, layer: int) -> str:
    return f"{entry.nemo}[{layer}]" if entry.per_layer else entry.nemo
