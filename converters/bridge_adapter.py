"""LoRA adapters between NeMo and Megatron-Bridge: the same factors under the same keys, but for a prefix."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import artifacts
from common.errors import CheckpointError, ConfigurationError
from converters.bridge_config import write_run_config
from converters.bridge_folder import COMMON, is_bridge, iteration_in, write_states
from converters.lora import LINEAR_IN, LINEAR_OUT, Adapter, empty_states, linear_of
from converters.mapping import TABLE, Entry, Place, layers_of, places
from converters.megatron_output import Kind
from converters.nemo_context import Call, Symbol, write_context
from converters.nemo_folder import METADATA, MegatronFolder, checkpoint_identity, config_of, is_nemo, trained_on
from converters.output_folder import copy_tokenizer, is_done, resumable_folder
from converters.rewrite import hub_id_of
from converters.storage.nemo_weights import PREFIX, Piece, write_weights
from modeling.hf_config import GptOssConfig

_IS_OF = {"nemo": is_nemo, "bridge": is_bridge}
_NAMES = {"nemo": "NeMo", "bridge": "Megatron-Bridge"}


_NO_CONFIG = "name the checkpoint of the base with --base"


def rewrite_adapter(adapter: Path, out: Path, *, to: Kind, base: Path | None = None) -> Path:
    """Write an adapter checkpoint of NeMo as one of Megatron-Bridge, or the other way round.

    Layers whose experts have no adapter get one of zeros for Megatron-Bridge, whose LoRA has no choice of layers.

    Args:
        base: checkpoint of the base, which the new one names; by default the one that `adapter` names.
    Raises:
        ConfigurationError: the base is not of the program that it is written for. CheckpointError: the adapter trained
            what that program's LoRA does not, or is damaged.
    """
    base = base or trained_on(adapter)
    if not _IS_OF[to](base):
        raise ConfigurationError(
            f"{base}, the base, is no checkpoint of {_NAMES[to]}: nemo-run convert import {base} NEW --to {to} makes "
            "one; name it with --base."
        )
    config = config_of(base, _NO_CONFIG)
    opened = Adapter.open(adapter, config)
    _ensure_expressible(opened, adapter, _NAMES[to])
    pieces = list(_pieces(opened, config, every_layer=to == "bridge"))
    inputs = {"kind": "adapter", "files": checkpoint_identity(adapter), "to": to, "base": str(base)}
    if is_done(out, inputs):
        return out
    with resumable_folder(out, f"{to}-adapter", inputs, sum(piece.bytes for piece in pieces)) as (folder, details):
        writer = _write_for_bridge if to == "bridge" else _write_for_nemo
        writer(folder, pieces, opened, config, base)
        details |= {"source": str(adapter)}
    return out


def ensure_expressible(adapter: Path, base: Path | None) -> None:
    """Refuse an adapter of Megatron-Bridge that PEFT cannot express.

    Raises:
        CheckpointError: it is one.
    """
    if is_bridge(adapter):
        opened = Adapter.open(adapter, config_of(base or trained_on(adapter), _NO_CONFIG))
        _ensure_expressible(opened, adapter, "PEFT")


def _adapted(adapter: Adapter) -> list[Entry]:
    return [entry for entry in TABLE if linear_of(entry) + LINEAR_IN in adapter.reader.tensors and _is_weight(entry)]


def _is_weight(entry: Entry) -> bool:
    return entry.nemo.endswith(".weight")


def _rank(adapter: Adapter, entry: Entry) -> int:
    return adapter.reader.shape(linear_of(entry) + LINEAR_IN)[-2]


def _ensure_expressible(adapter: Adapter, checkpoint: Path, program: str) -> None:
    whole = [entry.nemo for entry in TABLE if entry.nemo in adapter.reader.tensors]
    low_rank = [linear_of(entry) for entry in _adapted(adapter) if ".router" in entry.nemo]
    if (whole and program == _NAMES["bridge"]) or low_rank:
        raise CheckpointError(
            f"{checkpoint} trains {(low_rank or whole)[0]} {'by LoRA' if low_rank else 'in full'}, which LoRA of "
            f"{program} has not: merge it with nemo-run convert export --adapter."
        )
    if len(ranks := sorted({_rank(adapter, entry) for entry in _adapted(adapter)})) > 1:
        raise CheckpointError(
            f"{checkpoint} has adapters of the ranks {' and '.join(map(str, ranks))} (normalize_moe_lora), which "
            f"{program} would scale as one: merge it with nemo-run convert export --adapter."
        )


def _pieces(adapter: Adapter, config: GptOssConfig, *, every_layer: bool) -> Iterator[Piece]:
    """The factors under NeMo's keys, read when they are written.

    Args:
        every_layer: whether layers without an adapter get zeros, which change nothing.
    """
    reader, targets = adapter.reader, _adapted(adapter)
    for entry, layer in layers_of(config):
        if entry in targets and (every_layer or adapter.has_factors(entry, Place((layer, 0)))):
            trained = adapter.expert_layers if entry.per_expert and adapter.expert_layers else range(config.num_layers)
            number = layer if every_layer else tuple(trained).index(layer)
            layers = config.num_layers if every_layer else len(trained)
            for place in places(entry, config, layer):
                for end in (LINEAR_IN, LINEAR_OUT):
                    key = linear_of(entry) + end
                    shape = reader.shape(key)
                    axes = len(entry.leading(config))
                    offset = (number, *place.leading[1:], *(0 for _ in shape[axes:]))
                    size = (*(1 for _ in range(axes)), *shape[axes:])
                    read = partial(_factor, adapter, entry, place, end)
                    yield Piece(PREFIX + key, (layers, *shape[1:]), offset, size, reader.dtype(key), read)


def _factor(adapter: Adapter, entry: Entry, place: Place, end: str) -> torch.Tensor:
    factors = adapter.factors(entry, place)
    if factors is None:
        shape = adapter.reader.shape(linear_of(entry) + end)
        return torch.zeros(shape[-2:])
    return factors[end == LINEAR_OUT]


def _write_for_bridge(folder: Path, pieces: list[Piece], adapter: Adapter, config: GptOssConfig, base: Path) -> None:
    ours = MegatronFolder.of_bridge(iteration_in(folder))
    theirs = MegatronFolder.find(base)
    stored = [replace(piece, key=ours.prefix + piece.key.removeprefix(PREFIX)) for piece in pieces]
    write_weights(ours.weights, stored, common=COMMON)
    copy_tokenizer(theirs.tokenizer, ours.tokenizer)
    targets = [linear_of(entry).rpartition(".")[2] for entry in _adapted(adapter)]
    peft: dict[str, Any] = {"target_modules": targets, "dim": _rank(adapter, _adapted(adapter)[0])}
    peft |= {"alpha": adapter.alpha, "dropout": 0.0, "share_expert_adapters": False}
    hub_id = hub_id_of(base)
    tokenizer = hub_id or str(theirs.tokenizer.resolve())
    write_run_config(ours.settings, config, tokenizer=tokenizer, hub_id=hub_id, peft=peft, base=str(base.resolve()))
    write_states(folder)


def _write_for_nemo(folder: Path, pieces: list[Piece], adapter: Adapter, config: GptOssConfig, base: Path) -> None:
    ours, theirs = MegatronFolder.of_nemo(folder), MegatronFolder.find(base)
    keys = dict.fromkeys(piece.key.removeprefix(PREFIX) for piece in pieces)
    write_weights(ours.weights, pieces, empty_states(keys, config.num_layers))
    artifacts.write_text(ours.weights / METADATA, json.dumps({"model_ckpt_path": str(base.resolve())}))
    copy_tokenizer(theirs.tokenizer, ours.tokenizer)
    parts = [linear_of(entry).split(".")[-1 - entry.per_expert :] for entry in _adapted(adapter)]
    arguments = {"target_modules": [".".join(names) for names in parts], "dim": _rank(adapter, _adapted(adapter)[0])}
    arguments |= {"alpha": adapter.alpha, "expert_layers": None, "train_router": False, "dropout": 0.0}
    write_context(ours.beside, config, Call(Symbol("modeling.expert_lora", "GptOssLoRA"), arguments))
