"""Write a model as a checkpoint of NeMo or of Megatron-Bridge: its pieces, and what its program reads beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from converters.bridge_config import write_run_config
from converters.bridge_folder import COMMON, iteration_in, write_states
from converters.extra_states import empty_states
from converters.mapping import SCALES, Entry, Place, layers_of, places
from converters.nemo_context import write_context
from converters.nemo_folder import MegatronFolder
from converters.output_folder import GENERATION, LICENSES, copy_files, copy_tokenizer
from converters.storage.nemo_weights import PREFIX, Piece, write_weights
from converters.storage.safetensors_files import Group, Slab, TensorSpec, write_file
from modeling.hf_config import GptOssConfig
from modeling.mxfp4 import BLOCK

Kind = Literal["nemo", "bridge"]


@dataclass(frozen=True)
class Origin:
    """What a model brings besides its weights.

    Attributes:
        config_json: bytes of its config.json.
        tokenizer: folder of the tokenizer; `beside`: of generation_config.json and the licences.
        hub_id: of the published model that it is or was made from.
    """

    config: GptOssConfig
    config_json: bytes
    tokenizer: Path
    beside: Path
    hub_id: str | None


def pieces_of(
    entry: Entry,
    layer: int,
    config: GptOssConfig,
    dtype: torch.dtype,
    read: Callable[[Entry, Place], torch.Tensor],
) -> Iterator[Piece]:
    """The pieces of one layer's tensor; `read` gives each when it is written."""
    leading, shape = entry.leading(config), entry.shape(config)
    for place in places(entry, config, layer):
        first, last = place.rows or (0, shape[0])
        offset = (*place.leading, first, *(0 for _ in shape[1:]))
        size = (*(1 for _ in place.leading), last - first, *shape[1:])
        yield Piece(PREFIX + entry.nemo, (*leading, *shape), offset, size, dtype, partial(read, entry, place))


def scales_of(config: GptOssConfig, read: Callable[[Entry, Place], np.ndarray | None]) -> list[Group]:
    """The MXFP4 scales of each expert matrix, under Hugging Face's names.

    Args:
        read: uint8 (out, in/32) of an expert, rows in Hugging Face's order.
    """
    groups = []
    for entry, layer in layers_of(config):
        if entry.is_expert_matrix:
            name = entry.hf[0].format(layer=layer) + SCALES
            out, width = entry.hf_shapes(config)[0]
            spec = TensorSpec(name, torch.uint8, (config.num_experts, out, width // BLOCK))
            jobs = [partial(_scales_of, read, entry, place, name) for place in places(entry, config, layer)]
            groups.append(Group((spec,), tuple(jobs)))
    return groups


def _scales_of(read: Callable[[Entry, Place], np.ndarray | None], entry: Entry, place: Place, name: str) -> list[Slab]:
    scales = read(entry, place)
    assert scales is not None
    return [Slab(name, place.leading[1], scales)]


def write_model(
    partial_root: Path,
    root: Path,
    kind: Kind,
    origin: Origin,
    pieces: Sequence[Piece],
    *,
    scales: Sequence[Group] = (),
    packed: bool = False,
    progress: Callable[[int, int], None],
) -> None:
    """Write everything but the manifest.

    Args:
        partial_root: folder to write in; `root` is what it will be called.
        scales: of `scales_of`, which make the way back to MXFP4 exact.
        packed: whether the pieces hold the experts as MXFP4.
        progress: called with bytes and number of pieces after they were produced.
    """
    bridge = kind == "bridge"
    folder = MegatronFolder.of_bridge(iteration_in(partial_root)) if bridge else MegatronFolder.of_nemo(partial_root)
    copy_files((GENERATION, *LICENSES), origin.beside, folder.beside)
    copy_tokenizer(origin.tokenizer, folder.tokenizer)
    folder.config_file.write_bytes(origin.config_json)
    if scales:
        write_file(folder.scales, scales, progress)
    stored = [replace(piece, key=folder.prefix + piece.key.removeprefix(PREFIX)) for piece in pieces]
    states = empty_states(origin.config, packed=packed, prefix=folder.prefix)
    write_weights(folder.weights, stored, states, progress, COMMON if bridge else {})
    if bridge:
        fp32 = all(piece.dtype == torch.float32 for piece in pieces)
        tokenizer = origin.hub_id or str(iteration_in(root.absolute()) / folder.tokenizer.name)
        write_run_config(folder.settings, origin.config, tokenizer=tokenizer, hub_id=origin.hub_id, fp32=fp32)
        write_states(partial_root)
    else:
        write_context(folder.beside, origin.config, packed_experts=packed)
