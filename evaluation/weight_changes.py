"""Changes of a model's matrices by training: ‖ΔW‖ against ‖W‖, and singular values of ΔW where it is of low rank.

Matrices are read one by one; of an adapter's ΔW = (alpha / r)·B·A only the r × r core is ever decomposed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from common.progress import Done, Progress, quiet
from converters.lora import Adapter
from converters.mapping import TABLE, Entry, Place, places
from converters.nemo_reader import NemoReader
from converters.storage.weights_reader import WeightsReader
from modeling.hf_config import GptOssConfig


@dataclass(frozen=True)
class Change:
    """Change of one matrix by training; norms are Frobenius norms.

    Attributes:
        module: such as "self_attention.linear_qkv" or "experts.linear_fc1".
        layer: None for the embedding and the output layer; `expert`: None outside the experts.
        singular_values: of ΔW, the largest first; None where all parameters were trained.
    """

    module: str
    layer: int | None
    expert: int | None
    weight_norm: float
    change_norm: float
    singular_values: list[float] | None

    @property
    def relative(self) -> float:
        """‖ΔW‖ / ‖W‖."""
        return self.change_norm / self.weight_norm if self.weight_norm else 0.0

    @property
    def effective_rank(self) -> float | None:
        """How many directions ΔW has: exp of the entropy of its normalized singular values.

        Source: Roy and Vetterli, The effective rank, 2007.
        """
        total = sum(self.singular_values or [])
        if not self.singular_values or not total:
            return None
        shares = [value / total for value in self.singular_values if value > 0]
        return math.exp(-sum(share * math.log(share) for share in shares))


def low_rank_singular_values(linear_out: torch.Tensor, linear_in: torch.Tensor, scale: float) -> torch.Tensor:
    """Singular values of scale · B·A from the triangles of B's and Aᵀ's QR, (r,).

    Args:
        linear_out: B, (out, r). linear_in: A, (r, in).
    """
    outer = torch.linalg.qr(linear_out.double(), mode="r").R
    inner = torch.linalg.qr(linear_in.double().T, mode="r").R
    return abs(scale) * torch.linalg.svdvals(outer @ inner.T)


def changes(
    before: Path,
    after: Path,
    config: GptOssConfig,
    *,
    is_adapter: bool,
    progress: Progress = quiet,
) -> list[Change]:
    """Every trained matrix of a model, in the order of its layers.

    Args:
        before: NeMo checkpoint that training started from. after: its adapter, or the whole trained model.
    Raises:
        CheckpointError: a checkpoint is incomplete or damaged, or of another model.
    """
    base = NemoReader(before)
    adapter = Adapter.open(after, config) if is_adapter else None
    tuned = adapter.reader if adapter else WeightsReader(after / "weights")
    matrices = list(_matrices(config, tuned, adapter))
    measured = []
    for done, (entry, where) in enumerate(matrices, 1):
        if adapter and entry.nemo not in tuned.tensors:
            measured.append(_of_adapter(entry, where[0], base, adapter))
        else:
            measured.append(_of_tensor(entry, where, base, tuned))
        progress(Done("matrices", done, len(matrices)))
    return measured


def _matrices(
    config: GptOssConfig, tuned: WeightsReader, adapter: Adapter | None
) -> Iterator[tuple[Entry, list[Place]]]:
    """The trained matrices with the parts in which each is read."""
    for layer in (None, *range(config.num_layers)):
        for entry in TABLE:
            if entry.per_layer == (layer is None) or not entry.nemo.endswith(".weight") or "norm" in entry.nemo:
                continue
            parts = list(places(entry, config, layer or 0))
            for where in [[part] for part in parts] if entry.per_layer else [parts]:
                if entry.nemo in tuned.tensors or (adapter and adapter.factors(entry, where[0]) is not None):
                    yield entry, where


def _of_adapter(entry: Entry, place: Place, base: NemoReader, adapter: Adapter) -> Change:
    factors = adapter.factors(entry, place)
    assert factors is not None
    linear_in, linear_out = factors
    values = low_rank_singular_values(linear_out, linear_in, adapter.alpha / linear_in.shape[0])
    weight = float(base.read(entry, place).double().norm())
    return Change(_module(entry), place.layer, place.expert, weight, float(values.norm()), values.tolist())


def _of_tensor(entry: Entry, where: list[Place], base: NemoReader, tuned: WeightsReader) -> Change:
    weight = change = 0.0
    for place in where:
        old = base.read(entry, place).double()
        new = tuned.read(entry.nemo, *place.leading, rows=place.rows).double()
        weight += float(old.square().sum())
        change += float((new - old).square().sum())
    layer = where[0].layer if entry.per_layer else None
    return Change(_module(entry), layer, where[0].expert, math.sqrt(weight), math.sqrt(change), None)


def _module(entry: Entry) -> str:
    """The last two names of the linear layer."""
    return ".".join(entry.nemo.removesuffix(".weight").split(".")[-2:])
