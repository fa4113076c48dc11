"""LoRA adapters of a NeMo adapter checkpoint, as weight changes in Megatron's layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from converters.mapping import TABLE, Entry, Place
from converters.nemo_weights import WeightsReader
from errors import CheckpointError

_IN, _OUT = ".adapter.linear_in.weight", ".adapter.linear_out.weight"


@dataclass(frozen=True)
class Adapter:
    """An adapter checkpoint: ΔW = (alpha / rank) · linear_out · linear_in for each adapted linear layer."""

    reader: WeightsReader
    alpha: float
    expert_layers: tuple[int, ...] | None

    @classmethod
    def open(cls, checkpoint: Path) -> Adapter:
        """Read an adapter checkpoint as NeMo saves it.

        Raises:
            CheckpointError: it holds no adapter, or one of a layer that this package does not know.
        """
        reader = WeightsReader(checkpoint / "weights")
        settings = _peft_settings(checkpoint / "context" / "model.yaml")
        layers = settings.get("expert_layers")
        adapter = cls(reader, float(settings["alpha"]), tuple(sorted(layers)) if layers else None)
        known = {_linear(entry) + end for entry in TABLE for end in (_IN, _OUT)}
        known |= {entry.nemo for entry in TABLE if ".router." in entry.nemo}
        unknown = sorted(key for key in set(reader.tensors) - known if "_extra_state" not in key)
        if unknown or not any(_IN in key for key in reader.tensors):
            what = f"the unknown tensor {unknown[0]}" if unknown else "no LoRA weights"
            raise CheckpointError(f"{checkpoint} holds {what}: name an adapter checkpoint of this package's training.")
        return adapter

    def apply(self, entry: Entry, base: torch.Tensor, place: Place) -> torch.Tensor:
        """A part of a tensor with its change added in fp32; the base's own where nothing was trained."""
        if entry.nemo in self.reader.tensors:  # the router, trained in full
            return self.reader.read(entry.nemo, *place.leading)
        factors = self.factors(entry, place)
        if factors is None:
            return base
        linear_in, linear_out = factors
        return base.float() + (self.alpha / linear_in.shape[0]) * (linear_out @ linear_in)

    def factors(self, entry: Entry, place: Place) -> tuple[torch.Tensor, torch.Tensor] | None:
        """fp32 linear_in (r, in) and linear_out (out, r) of a layer's or expert's weight; None without an adapter."""
        key = _linear(entry)
        if not entry.nemo.endswith(".weight") or key + _IN not in self.reader.tensors:
            return None
        where = list(place.leading)
        if entry.per_expert and self.expert_layers is not None:
            if place.layer not in self.expert_layers:
                return None
            where[0] = self.expert_layers.index(place.layer)
        linear_in, linear_out = (self.reader.read(key + end, *where).float() for end in (_IN, _OUT))
        return linear_in, linear_out


def _linear(entry: Entry) -> str:
    return entry.nemo.rpartition(".")[0]


def _peft_settings(file: Path) -> dict[str, Any]:
    """Arguments of the LoRA transform that NeMo's model.yaml records."""
    try:
        found = _find_lora(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError):
        raise CheckpointError(f"{file} is missing or damaged: name a checkpoint of a LoRA training.") from None
    if found is None or "alpha" not in found:
        raise CheckpointError(f"{file} records no LoRA: name an adapter checkpoint, or export the model without one.")
    return found


def _find_lora(node: Any) -> dict[str, Any] | None:
    if isinstance(node, dict):
        if str(node.get("_target_", "")).endswith("LoRA"):
            return node
        node = list(node.values())
    if isinstance(node, list):
        return next((found for item in node if (found := _find_lora(item)) is not None), None)
    return None
