"""PEFT → NeMo: an adapter of any layout and any ranks as one checkpoint of this package's LoRA.

NeMo has one lora_A for query, key and value, one rank and one alpha. Where PEFT's differ, the three share the rows of
one linear_in and take each their columns of linear_out, block-diagonally; what has a smaller rank is filled up with
zeros, which never train; and what has another scale gets it into linear_out. So every change of weights is the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial, reduce
from pathlib import Path

import torch

from common import artifacts
from converters.lora import LINEAR_IN, LINEAR_OUT, empty_states, linear_of
from converters.mapping import Entry
from converters.nemo_context import Call, Symbol, write_context
from converters.nemo_folder import METADATA, TOKENIZER, config_of
from converters.output_folder import copy_tokenizer, is_done, resumable_folder, source_files
from converters.peft.expert_layouts import NOTE, ExpertLayout
from converters.peft.lora_settings import SETTINGS
from converters.peft.module_names import ADAPTED
from converters.peft.peft_reader import ADAPTER, Factors, PeftReader
from converters.storage.nemo_weights import PREFIX, Piece, write_weights


def is_peft(folder: Path) -> bool:
    """Whether a folder is a PEFT adapter, rather than a NeMo checkpoint."""
    return (folder / SETTINGS).is_file()


def import_adapter(peft: Path, out: Path, *, base: Path, layout: ExpertLayout | None = None) -> Path:
    """Write a PEFT folder as the NeMo adapter checkpoint of this package's LoRA.

    Args:
        base: our import of the base, which the checkpoint will name.
        layout: of the experts, where neither shapes nor the folder's records tell.
    Raises:
        CheckpointError: it is no plain LoRA of gpt-oss, or nothing tells the layout of its experts.
    """
    config = config_of(base, "name the import of the base with --base")
    reader = PeftReader(peft, config, layout)
    inputs = {"kind": "peft", "base": str(base), "files": source_files([peft / SETTINGS, peft / ADAPTER])}
    inputs["layout"] = reader.layout
    if is_done(out, inputs):
        return out
    fused = _Fused(reader)
    pieces = list(fused.pieces())
    with resumable_folder(out, "nemo-adapter", inputs, sum(piece.bytes for piece in pieces)) as (folder, details):
        keys = dict.fromkeys(piece.key.removeprefix(PREFIX) for piece in pieces)
        write_weights(folder / "weights", pieces, empty_states(keys, config.num_layers))
        artifacts.write_text(folder / "weights" / METADATA, json.dumps({"model_ckpt_path": str(base.resolve())}))
        context = folder / "context"
        copy_tokenizer(base / "context" / TOKENIZER, context / TOKENIZER)
        write_context(context, config, fused.transform())
        details |= {"source": str(peft), NOTE: reader.layout}
    return out


class _Fused:
    """A PEFT adapter in NeMo's terms.

    Attributes:
        layers: of each adapted weight, those that NeMo has an adapter in: all, or some of the experts'.
        shared: whether query, key and value have one lora_A in every layer.
        rank: of every adapter.
        scale: of every adapter, alpha / rank.
    """

    def __init__(self, reader: PeftReader) -> None:
        self.reader, self.config = reader, reader.config
        adapted = {entry: layers for entry in ADAPTED if (layers := reader.layers_of(entry))}
        experts = sorted({layer for entry, layers in adapted.items() if entry.per_expert for layer in layers})
        every = list(range(self.config.num_layers))
        self.layers = {entry: experts if entry.per_expert else every for entry in adapted}
        places = [(entry, layer) for entry, layers in self.layers.items() for layer in layers]
        self.shared = all(_have_one_input(reader.factors[place]) for place in places)
        self.rank = max(sum(part.rank for part in self._inputs(*place)) for place in places)
        self.scale = Counter(part.scale for place in places for part in self._parts(*place)).most_common(1)[0][0]

    def transform(self) -> Call:
        """The PEFT transform that NeMo trains such an adapter with."""
        names = [linear_of(entry).split(".")[-2 if entry.per_expert else -1 :] for entry in self.layers]
        experts = next((layers for entry, layers in self.layers.items() if entry.per_expert), [])
        arguments = {
            "target_modules": [".".join(name) for name in names],
            "dim": self.rank,
            "alpha": float(self.scale * self.rank),
            "expert_layers": experts if 0 < len(experts) < self.config.num_layers else None,
            "train_router": bool(self.reader.router),
            "dropout": 0.0,
        }
        return Call(Symbol("modeling.expert_lora", "GptOssLoRA"), arguments)

    def pieces(self) -> Iterator[Piece]:
        """Every factor and router, read when it is written."""
        for entry, layers in self.layers.items():
            dtype = self._dtype(entry)
            for index, layer in enumerate(layers):
                for end, produce in ((LINEAR_IN, self._linear_in), (LINEAR_OUT, self._linear_out)):
                    key, shape = linear_of(entry) + end, self._shapes(entry)[end]
                    yield _piece(key, (index, len(layers)), shape, dtype, partial(produce, entry, layer, dtype))
        for entry, names in self.reader.router.items():
            for layer, name in enumerate(names):
                dtype, read = self.reader.files.dtype(name), partial(self.reader.read, name)
                yield _piece(entry.nemo, (layer, len(names)), entry.shape(self.config), dtype, read)

    def _parts(self, entry: Entry, layer: int) -> list[Factors]:
        return [part for part in self.reader.factors[entry, layer] if part is not None]

    def _inputs(self, entry: Entry, layer: int) -> list[Factors]:
        """Those whose linear_in stand below each other."""
        return self._parts(entry, layer)[: 1 if self.shared else None]

    def _shapes(self, entry: Entry) -> dict[str, tuple[int, ...]]:
        """(R, in) and (out, R), of experts with E before."""
        experts, (out, width) = entry.leading(self.config)[1:], entry.shape(self.config)
        return {LINEAR_IN: (*experts, self.rank, width), LINEAR_OUT: (*experts, out, self.rank)}

    def _dtype(self, entry: Entry) -> torch.dtype:
        parts = [part for layer in self.layers[entry] for part in self._parts(entry, layer)]
        # a scale that goes into the values needs more digits than bf16 has
        scaled = [torch.float32] * any(part.scale != self.scale for part in parts)
        return reduce(torch.promote_types, [*scaled, *(part.dtype for part in parts)])

    def _linear_in(self, entry: Entry, layer: int, dtype: torch.dtype) -> torch.Tensor:
        whole, row = torch.zeros(self._shapes(entry)[LINEAR_IN], dtype=dtype), 0
        for part in self._inputs(entry, layer):
            whole[..., row : row + part.rank, :] = part.linear_in()
            row += part.rank
        return whole

    def _linear_out(self, entry: Entry, layer: int, dtype: torch.dtype) -> torch.Tensor:
        *experts, _, rank = self._shapes(entry)[LINEAR_OUT]
        blocks, column = [], 0
        for part, (rows, _) in zip(self.reader.factors[entry, layer], entry.hf_shapes(self.config), strict=True):
            blocks.append(torch.zeros(*experts, rows, rank, dtype=dtype))
            if part is not None:
                value = part.linear_out()
                scaled = value if part.scale == self.scale else value.to(dtype) * float(part.scale / self.scale)
                blocks[-1][..., column : column + part.rank] = scaled
                column += 0 if self.shared else part.rank
        if entry.per_expert:
            return blocks[0][:, torch.from_numpy(entry.rows_in_nemo(self.config))]
        return entry.to_nemo(blocks, self.config)


def _have_one_input(parts: list[Factors | None]) -> bool:
    """Whether all parts of a weight, of which query, key and value have three, have the same lora_A."""
    whole = [part for part in parts if part is not None]
    return all(torch.equal(whole[0].linear_in(), other.linear_in()) for other in whole[1:])


def _piece(
    key: str, place: tuple[int, int], shape: tuple[int, ...], dtype: torch.dtype, produce: Callable[[], torch.Tensor]
) -> Piece:
    """One layer's part of a stacked tensor; `place` is its index and the number of layers."""
    index, layers = place
    return Piece(PREFIX + key, (layers, *shape), (index, *(0 for _ in shape)), (1, *shape), dtype, produce)
