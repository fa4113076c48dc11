"""Read a PEFT folder as low-rank factors of the weights in the mapping table, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch

from common.errors import CheckpointError
from converters.finite import ensure_finite
from converters.mapping import Entry
from converters.peft.expert_layouts import (
    ExpertLayout,
    columns_of_experts,
    layout_by_records,
    layouts_of_shapes,
    rows_of_experts,
)
from converters.peft.lora_settings import MERGE, LoraSettings
from converters.peft.module_names import ADAPTED, ROOT, ROUTER, factor, modules_of, single_of, wrapper_of
from converters.storage.safetensors_files import SafetensorsReader
from modeling.hf_config import GptOssConfig

ADAPTER = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_Shape = tuple[int, ...]


@dataclass(frozen=True)
class Factors:
    """The LoRA of one Hugging Face weight, whose change is scale · linear_out · linear_in, rows in its own order.

    Attributes:
        dtype: that holds the values of both.
        linear_in: reads (r, in), of experts (E, r, in).
        linear_out: reads (out, r), of experts (E, out, r).
    """

    rank: int
    scale: Fraction
    dtype: torch.dtype
    linear_in: Callable[[], torch.Tensor]
    linear_out: Callable[[], torch.Tensor]


class PeftReader:
    """A PEFT folder, of which every tensor must be a factor of gpt-oss's attention or experts, or of its router.

    Args:
        layout: of the experts, for folders where neither shapes nor records tell.
    Raises:
        CheckpointError: the folder is damaged or no plain LoRA of this model, a tensor has another shape or is
            unknown, or nothing tells the layout of square experts.
    """

    def __init__(self, folder: Path, config: GptOssConfig, layout: ExpertLayout | None = None) -> None:
        self.folder, self.config = folder, config
        self.settings = LoraSettings(folder)
        if not (folder / ADAPTER).is_file() and (folder / _PICKLE).is_file():
            raise CheckpointError(f"{folder / _PICKLE} is a pickle, which can run code: save it again with PEFT ≥ 0.5.")
        self.files = SafetensorsReader(folder / ADAPTER)
        self._known: set[str] = set()
        layers = range(config.num_layers)
        self.layout = self._layout([(e, i) for e in ADAPTED if e.per_expert for i in layers], layout)
        self.factors = {(entry, layer): self._factors(entry, layer) for entry in ADAPTED for layer in layers}
        """By weight and layer, one for each of Hugging Face's names of it; None where that has no adapter."""
        self.router = {entry: names for entry in ROUTER if (names := self._router(entry))}
        """Names of the routers' tensors by layer, where they were trained in full."""
        self._refuse_the_rest()

    def layers_of(self, entry: Entry) -> list[int]:
        """Layers in which a weight has an adapter."""
        return [layer for layer in range(self.config.num_layers) if any(self.factors[entry, layer])]

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor of the file.

        Raises:
            CheckpointError: it holds a NaN or an infinity.
        """
        return ensure_finite(self.files.slice(name)[:], f"{self.folder / ADAPTER}: {name}")

    def _has(self, name: str) -> bool:
        return name in self.files.file_of

    def _factors(self, entry: Entry, layer: int) -> list[Factors | None]:
        modules = modules_of(entry, layer)
        if not entry.per_expert:
            shapes = entry.hf_shapes(self.config)
            return [self._linear(m, ROOT + m, *shape) for m, shape in zip(modules, shapes, strict=True)]
        (parameter,) = modules
        if wrapper := self._wrapper(parameter):
            return [self._stacked(entry, parameter, wrapper)]
        return [self._singles(entry, parameter)]

    def _linear(self, module: str, stored: str, out: int, width: int) -> Factors | None:
        rank = self.settings.rank_of(module)
        return self._pair(module, stored, (rank, width), (out, rank)) if self._is_adapted(stored) else None

    def _singles(self, entry: Entry, parameter: str) -> Factors | None:
        """Factors of the linear layers that each expert has of its own, stacked."""
        names = [single_of(parameter, expert) for expert in range(self.config.num_experts)]
        parts = [self._linear(name, ROOT + name, *entry.hf_shapes(self.config)[0]) for name in names]
        whole = [part for part in parts if part is not None]
        if not whole:
            return None
        if len(whole) < len(parts) or len({(part.rank, part.scale, part.dtype) for part in whole}) > 1:
            raise CheckpointError(f"{self.folder}: experts of {parameter} differ in rank, alpha or dtype: {MERGE}.")
        return replace(
            whole[0],
            linear_in=lambda: torch.stack([part.linear_in() for part in whole]),
            linear_out=lambda: torch.stack([part.linear_out() for part in whole]),
        )

    def _stacked(self, entry: Entry, parameter: str, wrapper: str) -> Factors:
        """Factors of a parameter of all experts, which PEFT keeps in two matrices."""
        assert self.layout is not None
        shapes = self.layout.shapes(entry, self.config, self.settings.rank_of(parameter))
        pair, experts = self._pair(parameter, wrapper, *shapes), self.config.num_experts

        def rows() -> torch.Tensor:
            return rows_of_experts(pair.linear_in(), experts)

        def columns() -> torch.Tensor:
            return columns_of_experts(pair.linear_out(), experts)

        if self.layout.swapped:
            return replace(pair, linear_in=lambda: columns().mT, linear_out=lambda: rows().mT)
        return replace(pair, linear_in=rows, linear_out=columns)

    def _pair(self, module: str, stored: str, shape_a: _Shape, shape_b: _Shape) -> Factors:
        """lora_A and lora_B as they are stored, their shapes checked."""
        names = [factor(stored, side) for side in "AB"]
        for name, shape in zip(names, (shape_a, shape_b), strict=True):
            self._check_shape(name, shape)
        dtype = torch.promote_types(*(self.files.dtype(name) for name in names))
        read = [partial(self.read, name) for name in names]
        return Factors(self.settings.rank_of(module), self.settings.scale_of(module), dtype, *read)

    def _is_adapted(self, stored: str) -> bool:
        return any(self._has(factor(stored, side)) for side in "AB")

    def _wrapper(self, parameter: str) -> str | None:
        """Where the factors of an experts' parameter stand; None where it has no wrapper, and another may have one."""
        wrapper = wrapper_of(parameter, self.settings.adapts)
        return wrapper if self.settings.adapts(parameter) and self._is_adapted(wrapper) else None

    def _layout(self, targets: list[tuple[Entry, int]], said: ExpertLayout | None) -> ExpertLayout | None:
        """The layout of the experts' factors; None without any."""
        pairs = []
        for entry, layer in targets:
            (parameter,) = modules_of(entry, layer)
            if wrapper := self._wrapper(parameter):
                shapes = [self.files.shape(factor(wrapper, side)) for side in "AB"]
                pairs.append((entry, self.settings.rank_of(parameter), *shapes))
        if not pairs:
            return None
        fitting = layouts_of_shapes(pairs, self.config)
        if not fitting:
            return ExpertLayout.transformers5  # a tensor has another shape, which is said when it is opened
        if len(fitting) == 1:
            if said not in (None, fitting[0]):
                raise CheckpointError(f"{self.folder} has the layout {fitting[0]} by its shapes: leave {said} out.")
            return fitting[0]
        recorded = said or layout_by_records(self.folder, self.settings.raw, self.files.metadata())
        if recorded is None:
            raise CheckpointError(
                f"{self.folder}: the experts' matrices are square, and nothing says whether lora_A stands for their "
                "input, as PEFT with transformers 5 writes it, or for their output, as PEFT from 0.19.1 on with "
                "transformers 4 does: add --layout transformers5 or transformers4, by what it was trained with."
            )
        return recorded

    def _router(self, entry: Entry) -> list[str]:
        names = [ROOT + entry.hf[0].format(layer=layer) for layer in range(self.config.num_layers)]
        if not any(map(self._has, names)):
            return []
        shape = entry.shape(self.config)
        for name in names:
            self._check_shape(name, shape)
        return names

    def _check_shape(self, name: str, shape: _Shape) -> None:
        if self.files.shape(name) != shape:
            raise CheckpointError(
                f"{self.folder / ADAPTER}: {name} has shape {self.files.shape(name)}, expected {shape}: "
                "name the base that it was trained on by --base."
            )
        self._known.add(name)

    def _refuse_the_rest(self) -> None:
        if unknown := sorted(set(self.files.file_of) - self._known):
            raise CheckpointError(
                f"{self.folder / ADAPTER} holds {unknown[0]}, and NeMo's LoRA of gpt-oss has only attention, experts "
                f"and the whole router: {MERGE}."
            )
        if not any(any(factors) for factors in self.factors.values()):
            raise CheckpointError(f"{self.folder / ADAPTER} holds no LoRA weights: name a PEFT folder.")
