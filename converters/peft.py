"""LoRA adapters between NeMo and Hugging Face PEFT, on attention and on every expert.

PEFT (pinned 0.21, `ParamWrapper`) holds the adapters of all experts of a 3-D parameter in two matrices: lora_A
(E·r, in), experts slowest, and lora_B (out, r·E), experts fastest. It takes "in" for the last axis of the parameter,
(E, H, 2F) or (E, F, H), which gpt-oss in transformers 4.57 multiplies from the other side: so lora_A holds NeMo's
linear_out transposed, and lora_B its linear_in transposed. Query, key and value share linear_in; each has its rows of
linear_out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import artifacts
from common.errors import CheckpointError
from common.foreign import read_json
from converters.finite import ensure_finite
from converters.lora import LINEAR_IN, LINEAR_OUT, Adapter, empty_states, linear_of
from converters.mapping import TABLE, Entry, Place, layers_of
from converters.nemo_context import Call, Symbol, write_context
from converters.nemo_folder import METADATA, TOKENIZER, checkpoint_identity, config_of, trained_on
from converters.output_folder import TOKENIZER_FILES, copy_files, is_done, resumable_folder, source_files
from converters.storage.nemo_weights import PREFIX, Piece, write_weights
from converters.storage.safetensors_files import Group, SafetensorsReader, Slab, TensorSpec, write_file
from modeling.hf_config import GptOssConfig

ADAPTER, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_ROOT = "base_model.model."
_NO_BASE = "name the import of the base with --base"
# A parameter's wrapper stands in the module of the one before it: down_proj's around gate_up_proj's.
_OUTER = "mlp.experts.down_proj"


def _adapted() -> list[Entry]:
    """The weights that can carry an adapter."""
    return [e for e in TABLE if e.per_layer and e.nemo.endswith(".weight") and ".linear_" in e.nemo]


def _router() -> list[Entry]:
    return [e for e in TABLE if ".router." in e.nemo]


# ---- NeMo → PEFT --------------------------------------------------------------------------------------------------


def is_peft(folder: Path) -> bool:
    """Whether a folder is a PEFT adapter, rather than a NeMo checkpoint."""
    return (folder / SETTINGS).is_file()


def export_adapter(adapter: Path, out: Path, *, base: Path | None = None) -> Path:
    """Write a NeMo adapter checkpoint as a PEFT folder.

    Args:
        base: our import that gives config.json; by default the model that the adapter was trained on.
    Raises:
        CheckpointError: it is no adapter checkpoint, or there is no config.json of its base.
    """
    origin_model = trained_on(adapter)
    like = base or origin_model
    config = config_of(like, _NO_BASE)
    opened = Adapter.open(adapter, config)
    inputs = {"kind": "peft", "files": checkpoint_identity(adapter)}
    if is_done(out, inputs):
        return out
    export = _PeftExport(opened, config)
    groups = export.groups()
    with resumable_folder(out, "peft-adapter", inputs, sum(group.bytes for group in groups)) as (folder, details):
        write_file(folder / ADAPTER, groups)
        # a model that was trained before it got the adapter is nowhere on the Hub
        origin = artifacts.read_manifest(like) if like.resolve() == origin_model.resolve() else None
        name = origin.details.get("source") if origin else None
        (folder / SETTINGS).write_text(json.dumps(export.settings(name), indent=2) + "\n")
        details |= {"adapter": str(adapter), "base": name}
    return out


class _PeftExport:
    def __init__(self, adapter: Adapter, config: GptOssConfig) -> None:
        self.adapter, self.config = adapter, config
        self.targets = [entry for entry in _adapted() if linear_of(entry) + LINEAR_IN in adapter.reader.tensors]
        self.routers = [entry for entry in _router() if entry.nemo in adapter.reader.tensors]
        first = self.targets[0]
        self.rank = adapter.reader.shape(linear_of(first) + LINEAR_IN)[-2]

    def settings(self, base: str | None) -> dict[str, Any]:
        """adapter_config.json."""
        modules = [name.split(".")[-2] for entry in self.targets if not entry.per_expert for name in entry.hf]
        experts = [entry.hf[0].removeprefix("model.") for entry in self.targets if entry.per_expert]
        parameters = [name.format(layer=layer) for name in experts for layer in self._expert_layers()]
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.adapter.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": modules,
            "target_parameters": parameters or None,
            "modules_to_save": ["router"] if self.routers else None,
            "inference_mode": True,
        }

    def groups(self) -> list[Group]:
        groups = []
        for entry, layer in layers_of(self.config):
            if entry in self.routers:
                groups.append(self._router_group(entry, layer))
            elif entry in self.targets and (not entry.per_expert or layer in self._expert_layers()):
                group = self._expert_group if entry.per_expert else self._attention_group
                groups.append(group(entry, layer))
        return groups

    def _expert_layers(self) -> tuple[int, ...]:
        return self.adapter.expert_layers or tuple(range(self.config.num_layers))

    def _dtype(self, entry: Entry) -> torch.dtype:
        return self.adapter.reader.dtype(linear_of(entry) + LINEAR_IN)

    def _attention_group(self, entry: Entry, layer: int) -> Group:
        dtype = self._dtype(entry)
        names = [_ROOT + name.format(layer=layer).removesuffix(".weight") for name in entry.hf]
        specs = []
        for name, (rows, width) in zip(names, entry.hf_shapes(self.config), strict=True):
            specs.append(TensorSpec(f"{name}.lora_A.weight", dtype, (self.rank, width)))
            specs.append(TensorSpec(f"{name}.lora_B.weight", dtype, (rows, self.rank)))
        return Group(tuple(specs), (partial(self._attention, entry, layer, names, dtype),))

    def _attention(self, entry: Entry, layer: int, names: list[str], dtype: torch.dtype) -> list[Slab]:
        linear_in, linear_out = self._factors(entry, Place((layer,)))
        slabs = []
        for name, part in zip(names, entry.to_hf(linear_out, self.config), strict=True):
            slabs += [Slab(f"{name}.lora_A.weight", 0, linear_in.to(dtype))]
            slabs += [Slab(f"{name}.lora_B.weight", 0, part.to(dtype))]
        return slabs

    def _expert_group(self, entry: Entry, layer: int) -> Group:
        dtype, name = self._dtype(entry), _expert_name(entry, layer, {e.hf[0] for e in self.targets})
        experts = self.config.num_experts
        ((rows, width),) = entry.hf_shapes(self.config)
        lora_a = TensorSpec(f"{name}.lora_A.weight", dtype, (experts * self.rank, rows))
        lora_b = TensorSpec(f"{name}.lora_B.weight", dtype, (width, self.rank * experts))
        return Group((lora_a, lora_b), (partial(self._experts, entry, layer, name, dtype),))

    def _experts(self, entry: Entry, layer: int, name: str, dtype: torch.dtype) -> list[Slab]:
        factors = [self._factors(entry, Place((layer, expert))) for expert in range(self.config.num_experts)]
        lora_a = torch.cat([entry.to_hf(linear_out, self.config)[0].T for _, linear_out in factors])
        lora_b = torch.stack([linear_in.T for linear_in, _ in factors], dim=2).flatten(1)
        return [Slab(f"{name}.lora_A.weight", 0, lora_a.to(dtype)), Slab(f"{name}.lora_B.weight", 0, lora_b.to(dtype))]

    def _router_group(self, entry: Entry, layer: int) -> Group:
        name = _ROOT + entry.hf[0].format(layer=layer)
        spec = TensorSpec(name, self.adapter.reader.dtype(entry.nemo), entry.shape(self.config))
        return Group((spec,), (lambda: [Slab(name, 0, self.adapter.reader.read(entry.nemo, layer))],))

    def _factors(self, entry: Entry, place: Place) -> tuple[torch.Tensor, torch.Tensor]:
        factors = self.adapter.factors(entry, place)
        assert factors is not None
        a, b = (ensure_finite(factor, linear_of(entry)) for factor in factors)
        return a, b


# ---- PEFT → NeMo --------------------------------------------------------------------------------------------------


def import_adapter(peft: Path, out: Path, *, base: Path) -> Path:
    """Write a PEFT folder as the NeMo adapter checkpoint of this package's LoRA.

    Args:
        base: our import of the base, which the checkpoint will name.
    Raises:
        CheckpointError: it is no LoRA of gpt-oss, or one that NeMo's fused query, key and value cannot hold.
    """
    reader, config = _PeftReader(peft), config_of(base, _NO_BASE)
    pieces = list(reader.pieces(config))
    inputs = {"kind": "peft", "base": str(base), "files": source_files([peft / SETTINGS, peft / ADAPTER])}
    if is_done(out, inputs):
        return out
    with resumable_folder(out, "nemo-adapter", inputs, sum(piece.bytes for piece in pieces)) as (folder, details):
        keys = dict.fromkeys(piece.key.removeprefix(PREFIX) for piece in pieces)
        write_weights(folder / "weights", pieces, empty_states(keys, config.num_layers))
        artifacts.write_text(folder / "weights" / METADATA, json.dumps({"model_ckpt_path": str(base.resolve())}))
        context = folder / "context"
        copy_files(TOKENIZER_FILES, base / "context" / TOKENIZER, context / TOKENIZER)
        write_context(context, config, reader.transform(config))
        details |= {"source": str(peft)}
    return out


class _PeftReader:
    """A PEFT folder as NeMo's factors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.settings: dict[str, Any] = read_json(folder, SETTINGS)
            self.rank, self.alpha = int(self.settings["r"]), float(self.settings["lora_alpha"])
            if self.rank < 1 or not math.isfinite(self.alpha):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            raise CheckpointError(f"{folder / SETTINGS} is missing or damaged: name a PEFT folder.") from None
        for option in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern"):
            if self.settings.get(option):
                raise CheckpointError(f"{folder / SETTINGS} sets {option}, which NeMo's LoRA has not.")
        self.files = SafetensorsReader(folder / ADAPTER)
        self.names = set(self.files.file_of)
        self.read_names: set[str] = set()

    def transform(self, config: GptOssConfig) -> Call:
        """The PEFT transform that NeMo trains such an adapter with."""
        targets = [
            ".".join(linear_of(e).split(".")[-2:] if e.per_expert else linear_of(e).split(".")[-1:])
            for e in _adapted()
            if self._layers(e, config)
        ]
        experts = [layers for e in _adapted() if e.per_expert and (layers := self._layers(e, config))]
        some = sorted(experts[0]) if experts and len(experts[0]) < config.num_layers else None
        router = any(self._router_name(entry, 0) in self.names for entry in _router())
        arguments = {"target_modules": targets, "dim": self.rank, "alpha": self.alpha, "expert_layers": some}
        return Call(Symbol("modeling.expert_lora", "GptOssLoRA"), arguments | {"train_router": router, "dropout": 0.0})

    def pieces(self, config: GptOssConfig) -> Iterator[Piece]:
        """Every factor of the adapter.

        Raises:
            CheckpointError: a tensor has another shape or is unknown; the experts of the layers differ in targets.
        """
        for entry in _adapted():
            layers = self._layers(entry, config)
            if layers and not entry.per_expert and len(layers) < config.num_layers:
                raise CheckpointError(f"{self.folder} adapts {entry.hf[0]} in some layers only, NeMo in all or none.")
            for index, layer in enumerate(layers):
                yield from self._pieces(entry, config, layer, (index, len(layers)))
        for entry in _router():
            for layer in range(config.num_layers):
                if (name := self._router_name(entry, layer)) in self.names:
                    shape = entry.shape(config)
                    value = partial(self._read, name, shape)
                    whole = (config.num_layers, *shape)
                    offset = (layer, *(0 for _ in shape))
                    yield Piece(PREFIX + entry.nemo, whole, offset, (1, *shape), self.files.dtype(name), value)
                    self.read_names.add(name)
        if unknown := sorted(self.names - self.read_names):
            raise CheckpointError(f"{self.folder / ADAPTER} holds {unknown[0]}, which NeMo's LoRA of gpt-oss has not.")

    def _pieces(self, entry: Entry, config: GptOssConfig, layer: int, place: tuple[int, int]) -> Iterator[Piece]:
        names = self._names(entry, layer)
        self.read_names |= {f"{name}.lora_{side}.weight" for name in names for side in "AB"}
        dtype = self.files.dtype(f"{names[0]}.lora_A.weight")
        factors = self._experts(entry, config, names[0]) if entry.per_expert else self._attention(entry, config, names)
        for end, stacked in zip((LINEAR_IN, LINEAR_OUT), factors, strict=True):
            # (E, r, in) and (E, out, r) of experts, (r, in) and (out, r) of attention
            whole = (place[1], *stacked.shape)
            offset = (place[0], *(0 for _ in stacked.shape))
            value = partial(torch.Tensor.clone, stacked)
            yield Piece(PREFIX + linear_of(entry) + end, whole, offset, (1, *stacked.shape), dtype, value)

    def _attention(self, entry: Entry, config: GptOssConfig, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        shapes = entry.hf_shapes(config)
        ins = [
            self._read(f"{n}.lora_A.weight", (self.rank, width)) for n, (_, width) in zip(names, shapes, strict=True)
        ]
        outs = [self._read(f"{n}.lora_B.weight", (rows, self.rank)) for n, (rows, _) in zip(names, shapes, strict=True)]
        if any(not torch.equal(ins[0], other) for other in ins[1:]):
            raise CheckpointError(
                f"{self.folder}: lora_A differs between {' and '.join(names)}, and NeMo's fused projection has one: "
                "merge this adapter with PEFT and import the model."
            )
        return ins[0], entry.to_nemo(outs, config)

    def _experts(self, entry: Entry, config: GptOssConfig, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        experts = config.num_experts
        ((rows, width),) = entry.hf_shapes(config)
        lora_a = self._read(f"{name}.lora_A.weight", (experts * self.rank, rows)).reshape(experts, self.rank, rows)
        lora_b = self._read(f"{name}.lora_B.weight", (width, self.rank * experts)).reshape(width, self.rank, experts)
        outs = [entry.to_nemo([lora_a[expert].T], config) for expert in range(experts)]
        return lora_b.permute(2, 1, 0).contiguous(), torch.stack(outs)

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if self.files.shape(name) != shape:
            raise CheckpointError(
                f"{self.folder / ADAPTER}: {name} has shape {self.files.shape(name)}, expected {shape}."
            )
        return ensure_finite(self.files.slice(name)[:], f"{self.folder / ADAPTER}: {name}")

    def _layers(self, entry: Entry, config: GptOssConfig) -> list[int]:
        layers = range(config.num_layers)
        return [layer for layer in layers if f"{self._names(entry, layer)[0]}.lora_A.weight" in self.names]

    def _names(self, entry: Entry, layer: int) -> list[str]:
        if entry.per_expert:
            parameters = {str(name).rpartition("layers.")[2] for name in self.settings.get("target_parameters") or []}
            here = {e.hf[0] for e in _adapted() if e.per_expert and _targets(parameters, e, layer)}
            # without this parameter's own wrapper there is no name, and the other's must not be taken for it
            return [_expert_name(entry, layer, here) if entry.hf[0] in here else ""]
        return [_ROOT + name.format(layer=layer).removesuffix(".weight") for name in entry.hf]

    def _router_name(self, entry: Entry, layer: int) -> str:
        return _ROOT + entry.hf[0].format(layer=layer)


def _targets(parameters: set[str], entry: Entry, layer: int) -> bool:
    name = entry.hf[0].format(layer=layer).removeprefix("model.layers.")  # "3.mlp.experts.down_proj"
    return any(name == parameter or name.endswith("." + parameter) for parameter in parameters)


def _expert_name(entry: Entry, layer: int, targets: set[str]) -> str:
    module, _, parameter = entry.hf[0].format(layer=layer).rpartition(".")
    inner = parameter == "gate_up_proj" and any(target.endswith(_OUTER) for target in targets)
    return _ROOT + module + (".base_layer" if inner else "")
