"""NeMo → PEFT: an adapter checkpoint as a folder that PEFT and servers load, in either layout of the experts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import artifacts
from converters.finite import ensure_finite
from converters.lora import LINEAR_IN, LINEAR_OUT, Adapter, linear_of
from converters.mapping import Entry, Place, layers_of
from converters.model_card import adapter_card_text
from converters.nemo_folder import checkpoint_identity, config_of, trained_on
from converters.output_folder import is_done, resumable_folder
from converters.peft.expert_layouts import KIND, NOTE, ExpertLayout
from converters.peft.lora_settings import SETTINGS
from converters.peft.module_names import ADAPTED, ROOT, ROUTER, factor, modules_of, wrapper_of
from converters.peft.peft_reader import ADAPTER
from converters.storage.safetensors_files import Group, Slab, TensorSpec, write_file
from modeling.hf_config import GptOssConfig


def export_adapter(
    adapter: Path,
    out: Path,
    *,
    base: Path | None = None,
    layout: ExpertLayout = ExpertLayout.transformers5,
    title: str = "",
) -> Path:
    """Write a NeMo adapter checkpoint as a PEFT folder.

    Args:
        base: our import that gives config.json; by default the model that the adapter was trained on.
        layout: of the experts' factors, by who shall read them.
        title: of the model card; the checkpoint's name by default.
    Raises:
        CheckpointError: it is no adapter checkpoint, or there is no config.json of its base.
    """
    origin_model = trained_on(adapter)
    like = base or origin_model
    config = config_of(like, "name the import of the base with --base")
    export = _PeftExport(Adapter.open(adapter, config), config, layout)
    inputs = {"kind": "peft", "files": checkpoint_identity(adapter), "layout": layout, "title": title}
    if is_done(out, inputs):
        return out
    groups = export.groups()
    with resumable_folder(out, KIND, inputs, sum(group.bytes for group in groups)) as (folder, details):
        write_file(folder / ADAPTER, groups, metadata={NOTE: layout} if export.has_experts else {})
        # a model that was trained before it got the adapter is nowhere on the Hub
        origin = artifacts.read_manifest(like) if like.resolve() == origin_model.resolve() else None
        name = origin.details.get("source") if origin else None
        (folder / SETTINGS).write_text(json.dumps(export.settings(name), indent=2) + "\n")
        (folder / "README.md").write_text(
            adapter_card_text(title or adapter.name, name, export.rank, layout.words if export.has_experts else None)
        )
        details |= {"adapter": str(adapter), "base": name, NOTE: layout if export.has_experts else None}
    return out


class _PeftExport:
    def __init__(self, adapter: Adapter, config: GptOssConfig, layout: ExpertLayout) -> None:
        self.adapter, self.config, self.layout = adapter, config, layout
        self.targets = [entry for entry in ADAPTED if linear_of(entry) + LINEAR_IN in adapter.reader.tensors]
        self.routers = [entry for entry in ROUTER if entry.nemo in adapter.reader.tensors]
        self.rank = adapter.reader.shape(linear_of(self.targets[0]) + LINEAR_IN)[-2]

    @property
    def has_experts(self) -> bool:
        """Whether the layout makes a difference."""
        return any(entry.per_expert for entry in self.targets)

    def settings(self, base: str | None) -> dict[str, Any]:
        """adapter_config.json."""
        alpha = self.adapter.alpha
        modules = [name.split(".")[-2] for entry in self.targets if not entry.per_expert for name in entry.hf]
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": modules,
            "target_parameters": [parameter.removeprefix("model.") for parameter in self._parameters()] or None,
            "modules_to_save": ["router"] if self.routers else None,
            "inference_mode": True,
        }

    def groups(self) -> list[Group]:
        groups = []
        for entry, layer in layers_of(self.config):
            if entry in self.routers:
                groups.append(self._router(entry, layer))
            elif entry in self.targets and self.adapter.has_factors(entry, Place((layer,))):
                groups.append((self._experts if entry.per_expert else self._attention)(entry, layer))
        return groups

    def _parameters(self) -> Iterator[str]:
        """The experts' parameters that have adapters."""
        for entry in self.targets:
            if entry.per_expert:
                layers = [i for i in range(self.config.num_layers) if self.adapter.has_factors(entry, Place((i,)))]
                yield from (modules_of(entry, layer)[0] for layer in layers)

    def _attention(self, entry: Entry, layer: int) -> Group:
        """Query, key and value share linear_in; each has its rows of linear_out."""
        dtype, place = self._dtype(entry), Place((layer,))
        modules = [ROOT + module for module in modules_of(entry, layer)]
        specs = []
        for module, (rows, width) in zip(modules, entry.hf_shapes(self.config), strict=True):
            specs.append(TensorSpec(factor(module, "A"), dtype, (self.rank, width)))
            specs.append(TensorSpec(factor(module, "B"), dtype, (rows, self.rank)))

        def slabs() -> list[Slab]:
            linear_in, linear_out = (self._factor(entry, place, end).to(dtype) for end in (LINEAR_IN, LINEAR_OUT))
            parts = entry.to_hf(linear_out, self.config)
            outs = [Slab(factor(module, "B"), 0, part) for module, part in zip(modules, parts, strict=True)]
            return [*(Slab(factor(module, "A"), 0, linear_in) for module in modules), *outs]

        return Group(tuple(specs), (slabs,))

    def _experts(self, entry: Entry, layer: int) -> Group:
        dtype, experts = self._dtype(entry), self.config.num_experts
        (parameter,) = modules_of(entry, layer)
        wrapper = wrapper_of(parameter, set(self._parameters()).__contains__)
        shape_a, shape_b = self.layout.shapes(entry, self.config, self.rank)
        lora_a, lora_b = (
            TensorSpec(factor(wrapper, "A"), dtype, shape_a),
            TensorSpec(factor(wrapper, "B"), dtype, shape_b),
        )

        def rows(expert: int) -> list[Slab]:
            return [Slab(lora_a.name, expert * self.rank, self._of_expert(entry, layer, expert, "A").to(dtype))]

        def columns() -> list[Slab]:
            whole = torch.empty(shape_b, dtype=dtype).unflatten(1, (self.rank, experts))
            for expert in range(experts):
                whole[..., expert] = self._of_expert(entry, layer, expert, "B")
            return [Slab(lora_b.name, 0, whole.flatten(1))]

        return Group((lora_a, lora_b), (*(partial(rows, expert) for expert in range(experts)), columns))

    def _of_expert(self, entry: Entry, layer: int, expert: int, side: str) -> torch.Tensor:
        """An expert's part of lora_A, (r, n), or of lora_B, (n, r)."""
        outward = (side == "A") is self.layout.swapped
        value = self._factor(entry, Place((layer, expert)), LINEAR_OUT if outward else LINEAR_IN)
        if outward:
            (value,) = entry.to_hf(value, self.config)
        return value.T if self.layout.swapped else value

    def _factor(self, entry: Entry, place: Place, end: str) -> torch.Tensor:
        return ensure_finite(self.adapter.factor(entry, place, end), linear_of(entry) + end)

    def _router(self, entry: Entry, layer: int) -> Group:
        name = ROOT + entry.hf[0].format(layer=layer)
        spec = TensorSpec(name, self.adapter.reader.dtype(entry.nemo), entry.shape(self.config))
        return Group((spec,), (lambda: [Slab(name, 0, self.adapter.reader.read(entry.nemo, layer))],))

    def _dtype(self, entry: Entry) -> torch.dtype:
        ends = (self.adapter.reader.dtype(linear_of(entry) + end) for end in (LINEAR_IN, LINEAR_OUT))
        return torch.promote_types(*ends)
