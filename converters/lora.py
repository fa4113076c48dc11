"""LoRA adapters of a checkpoint of NeMo or Megatron-Bridge, as weight changes in Megatron's layout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from common.errors import CheckpointError, ConfigurationError
from common.foreign import file_in
from common.yaml_text import parse_yaml
from converters.adapter_weights import AdapterWeights
from converters.mapping import TABLE, Entry, Place
from converters.nemo_folder import MegatronFolder
from converters.storage.nemo_weights import PREFIX
from converters.storage.weights_reader import WeightsReader
from modeling.hf_config import GptOssConfig

LINEAR_IN, LINEAR_OUT = ".adapter.linear_in.weight", ".adapter.linear_out.weight"


@dataclass(frozen=True)
class Adapter:
    """An adapter checkpoint: ΔW = (alpha / rank) · linear_out · linear_in for each adapted linear layer."""

    reader: WeightsReader
    alpha: float
    expert_layers: tuple[int, ...] | None

    @classmethod
    def open(cls, checkpoint: Path, config: GptOssConfig) -> Adapter:
        """Read an adapter checkpoint as NeMo or Megatron-Bridge saves it.

        Raises:
            CheckpointError: it holds no adapter, one of a layer that this package does not know, or one of a model of
                other sizes than `config`.
        """
        reader = AdapterWeights(checkpoint, config.num_experts)
        settings = peft_settings(checkpoint)
        layers = settings.get("expert_layers")
        adapter = cls(reader, float(settings["alpha"]), tuple(sorted(layers)) if layers else None)
        names = {linear_of(entry) + end for entry in TABLE for end in (LINEAR_IN, LINEAR_OUT)}
        names |= {entry.nemo for entry in TABLE if ".router." in entry.nemo}
        unknown = sorted(key for key in set(reader.tensors) - names if "_extra_state" not in key)
        if unknown or not any(LINEAR_IN in key for key in reader.tensors):
            what = f"the unknown tensor {unknown[0]}" if unknown else "no LoRA weights"
            raise CheckpointError(f"{checkpoint} holds {what}: name an adapter checkpoint of this package's training.")
        for entry in TABLE:
            adapter._check(entry, config, checkpoint)
        return adapter

    def apply(self, entry: Entry, base: torch.Tensor, place: Place) -> torch.Tensor:
        """A part of a tensor with its change added in fp32; the base's own where nothing was trained."""
        if entry.nemo in self.reader.tensors:  # the router, trained in full
            return self.reader.read(entry.nemo, *place.leading)
        factors = self.factors(entry, place)
        if factors is None:
            return base
        linear_in, linear_out = factors
        if not linear_out.any():  # a sum with zeros would change the sign of a zero
            return base
        return base.float() + (self.alpha / linear_in.shape[0]) * (linear_out @ linear_in)

    def factors(self, entry: Entry, place: Place) -> tuple[torch.Tensor, torch.Tensor] | None:
        """fp32 linear_in (r, in) and linear_out (out, r) of a layer's or expert's weight; None without an adapter."""
        if not self.has_factors(entry, place):
            return None
        return self.factor(entry, place, LINEAR_IN).float(), self.factor(entry, place, LINEAR_OUT).float()

    def factor(self, entry: Entry, place: Place, end: str) -> torch.Tensor:
        """linear_in or linear_out, by `LINEAR_IN` or `LINEAR_OUT`, as it is stored, of a weight that has them."""
        where = list(place.leading)
        if entry.per_expert and self.expert_layers is not None:
            where[0] = self.expert_layers.index(place.layer)
        return self.reader.read(linear_of(entry) + end, *where)

    def has_factors(self, entry: Entry, place: Place) -> bool:
        """Whether a layer's or expert's weight has an adapter."""
        if not entry.nemo.endswith(".weight") or linear_of(entry) + LINEAR_IN not in self.reader.tensors:
            return False
        return not entry.per_expert or self.expert_layers is None or place.layer in self.expert_layers

    def _check(self, entry: Entry, config: GptOssConfig, checkpoint: Path) -> None:
        """Compare the shapes of an entry's tensors with those that `config` asks for."""
        leading, shape, linear = entry.leading(config), entry.shape(config), linear_of(entry)
        expected: dict[str, tuple[int, ...]] = {entry.nemo: (*leading, *shape)}
        if linear + LINEAR_IN in self.reader.tensors and entry.nemo.endswith(".weight"):
            if entry.per_expert and self.expert_layers is not None:
                leading = (len(self.expert_layers), *leading[1:])
            rank = self.reader.shape(linear + LINEAR_IN)[-2]
            expected |= {
                linear + LINEAR_IN: (*leading, rank, shape[1]),
                linear + LINEAR_OUT: (*leading, shape[0], rank),
            }
        for key, wanted in expected.items():
            if key in self.reader.tensors and self.reader.shape(key) != wanted:
                stored = self.reader.shape(key)
                raise CheckpointError(
                    f"{checkpoint}: {key} has shape {stored}, the model has {wanted}: name the adapter's own base."
                )


def empty_states(keys: Iterable[str], layers: int) -> list[str]:
    """Keys of the module states without content that NeMo's LoRA of attention asks for.

    Its two matrices are megatron-core's parallel linear layers, which save one; those of our expert LoRA are not.
    """
    linears = [key.removesuffix("weight") for key in keys if ".self_attention." in key and ".adapter." in key]
    return [f"{PREFIX}{linear}_extra_state/shard_{i}_{layers}" for linear in linears for i in range(layers)]


def linear_of(entry: Entry) -> str:
    """Key of the linear layer that a weight or bias belongs to."""
    return entry.nemo.rpartition(".")[0]


def peft_settings(checkpoint: Path) -> dict[str, Any]:
    """Arguments of the LoRA transform that an adapter was trained with, by NeMo's model.yaml or Bridge's run config.

    Raises:
        CheckpointError: the file is missing or damaged, or records no LoRA.
    """
    file = MegatronFolder.find(checkpoint).settings
    try:
        settings = _find_lora(parse_yaml(file_in(file.parent, file.name).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ConfigurationError):
        raise CheckpointError(f"{file} is missing or damaged: name a checkpoint of a LoRA training.") from None
    if settings is None or "alpha" not in settings:
        raise CheckpointError(f"{file} records no LoRA: name an adapter checkpoint, or export the model without one.")
    return settings


def _find_lora(node: Any) -> dict[str, Any] | None:
    if isinstance(node, dict):
        if str(node.get("_target_", "")).endswith("LoRA"):
            return node
        node = list(node.values())
    if isinstance(node, list):
        return next((settings for item in node if (settings := _find_lora(item)) is not None), None)
    return None
