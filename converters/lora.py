"""LoRA adapters of a NeMo adapter checkpoint, as weight changes in Megatron's layout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from converters.mapping import TABLE, Entry
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
        settings = _peft_settings(checkpoint / "context" / "io.json")
        layers = settings.get("expert_layers")
        adapter = cls(reader, float(settings["alpha"]), tuple(sorted(layers)) if layers else None)
        known = {_linear(entry) + end for entry in TABLE for end in (_IN, _OUT)}
        known |= {entry.nemo for entry in TABLE if ".router." in entry.nemo}
        unknown = sorted(set(reader.tensors) - known)
        if unknown or not any(_IN in key for key in reader.tensors):
            what = f"the unknown tensor {unknown[0]}" if unknown else "no LoRA weights"
            raise CheckpointError(f"{checkpoint} holds {what}: name an adapter checkpoint of this package's training.")
        return adapter

    def apply(self, entry: Entry, base: torch.Tensor, layer: int, expert: int | None) -> torch.Tensor:
        """A layer's (expert's) tensor with its change added in fp32; the base's own where nothing was trained."""
        if entry.nemo in self.reader.tensors:  # the router, trained in full
            return self.reader.read(entry.nemo, layer)
        key = _linear(entry)
        if not entry.nemo.endswith(".weight") or key + _IN not in self.reader.tensors:
            return base
        where = [layer] if expert is None else [layer, expert]
        if expert is not None and self.expert_layers is not None:
            if layer not in self.expert_layers:
                return base
            where[0] = self.expert_layers.index(layer)
        linear_in, linear_out = (self.reader.read(key + end, *where).float() for end in (_IN, _OUT))
        return base.float() + (self.alpha / linear_in.shape[0]) * (linear_out @ linear_in)


def _linear(entry: Entry) -> str:
    return entry.nemo.rpartition(".")[0]


def _peft_settings(file: Path) -> dict[str, Any]:
    """Arguments of the LoRA transform that NeMo's io.json (a fiddle graph) records."""
    try:
        objects = json.loads(file.read_text())["objects"]
    except (OSError, ValueError, KeyError):
        raise CheckpointError(f"{file} is missing or damaged: name a checkpoint of a LoRA training.") from None
    for item in objects.values():
        if str(item.get("type", {}).get("name", "")).endswith("LoRA"):
            found = {name: _value(objects, reference) for name, reference in _arguments(item)}
            return {"alpha": 32, **found}
    raise CheckpointError(f"{file} records no LoRA: name an adapter checkpoint, or export the model without one.")


def _arguments(item: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(path.split("name='")[1].split("'")[0], value) for path, value in item["items"] if "name='" in path]


def _value(objects: dict[str, Any], value: Any) -> Any:
    """A leaf of the graph, or a list of leaves; anything deeper is of no use here."""
    if value.get("type") == "leaf":
        return value.get("value")
    target = objects.get(value.get("key", ""), {})
    return [_value(objects, entry) for _, entry in target.get("items", [])]
