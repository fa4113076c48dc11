"""NeMo's `context/`: what `nemo.lightning.io.load_context` builds the model and its tokenizer from, without NeMo here.

`io.json` is a fiddle graph (fiddle 0.3, `fiddle.experimental.serialization`, version 0.0.1): every object a node with
the callable it is built by and the paths by which NeMo finds it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.nemo_folder import TOKENIZER
from modeling.attention import CP_EXCHANGE
from modeling.hf_config import GptOssConfig, megatron_arguments


@dataclass(frozen=True)
class Symbol:
    """A class, function or constant by its module and name."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """An object as the class or function that builds it and the arguments."""

    symbol: Symbol
    arguments: Mapping[str, Any] = field(default_factory=dict)


def write_context(
    folder: Path, config: GptOssConfig, model_transform: Call | None = None, *, packed_experts: bool = False
) -> None:
    """Write io.json and model.yaml of NeMo's GPTOSSModel, with the arguments that make it compute what HF computes.

    Args:
        folder: `context/`; the tokenizer is expected in its folder `TOKENIZER`.
        model_transform: the PEFT transform of an adapter checkpoint.
        packed_experts: whether the weights keep their experts MXFP4, which NeMo's own configuration cannot.
    """
    import yaml

    model = _model(config, model_transform, packed_experts)
    context = Call(Symbol("nemo.lightning.io.pl", "TrainerContext"), {"model": model, "trainer": None, "extra": {}})
    (folder / "io.json").write_text(json.dumps(to_fiddle(context), indent=1) + "\n")
    (folder / "model.yaml").write_text(yaml.safe_dump(_to_yaml(model)))


def _model(config: GptOssConfig, model_transform: Call | None, packed_experts: bool) -> Call:
    bf16 = Symbol("torch", "bfloat16")
    arguments = megatron_arguments(config) | {
        # as modeling.model_config.nemo_config sets them, which says why
        "activation_func": Symbol("megatron.core.fusions.fused_bias_geglu", "quick_gelu"),
        "bias_activation_fusion": False,
        "cp_comm_type": CP_EXCHANGE,
        # NeMo's default needs Transformer Engine to build the configuration at all; recipes set their own
        "moe_permute_fusion": False,
        "seq_length": config.yarn_original_positions,
        "bf16": True,
        "params_dtype": bf16,
        "pipeline_dtype": bf16,
        "autocast_dtype": bf16,
    }
    tokenizer = Symbol("nemo.collections.common.tokenizers.huggingface.auto_tokenizer", "AutoTokenizer")
    gpt_oss = "nemo.collections.llm.gpt.model.gpt_oss"
    kind = Symbol(gpt_oss, "GPTOSSConfig")
    if packed_experts:
        kind = Symbol("modeling.model_config", "CorrectedGptOssConfig")
        arguments["packed_experts"] = True
    parts: dict[str, Any] = {
        "config": Call(kind, arguments),
        "tokenizer": Call(tokenizer, {"pretrained_model_name": TOKENIZER}),
    }
    if model_transform is not None:
        parts["model_transform"] = model_transform
    return Call(Symbol(gpt_oss, "GPTOSSModel"), parts)


def to_fiddle(root: Call) -> dict[str, Any]:
    """The graph of `root` as fiddle serializes it."""
    graph = _Graph()
    reference = graph.node(root, "<root>")
    counts = dict.fromkeys(graph.objects, 1)
    return {"root": reference, "objects": graph.objects, "refcounts": counts, "version": "0.0.1"}


class _Graph:
    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}

    def node(self, value: Any, path: str) -> dict[str, Any]:
        """`value` as it stands in its parent: a leaf, a symbol, or a reference to an object of its own."""
        if isinstance(value, Symbol):
            return {**_pyref(value), "paths": [path]}
        if isinstance(value, Call):
            items = [(f"Attr(name='{name}')", self.node(v, f"{path}.{name}")) for name, v in value.arguments.items()]
            config = Symbol("fiddle._src.config", "Config")
            return self._add(value.symbol.name, config, items, self._metadata(value), [path])
        if isinstance(value, list | tuple):
            items = [(f"Index(index={i})", self.node(v, f"{path}[{i}]")) for i, v in enumerate(value)]
            return self._add(type(value).__name__, Symbol("builtins", type(value).__name__), items, None, [path])
        if isinstance(value, dict):
            assert not value, "no object of a context is built from a dictionary with keys"
            return self._empty_dict([path])
        return {"type": "leaf", "value": value, "paths": [path]}

    def _metadata(self, call: Call) -> dict[str, Any]:
        names = [(f"Index(index={i})", name) for i, name in enumerate(call.arguments)]
        kind = Symbol("fiddle._src.config", "BuildableTraverserMetadata")
        items = [
            ("Attr(name='fn_or_cls')", _pyref(call.symbol)),
            ("Attr(name='argument_names')", self._add("tuple", Symbol("builtins", "tuple"), names, None)),
            ("Attr(name='argument_tags')", self._empty_dict()),
            ("Attr(name='argument_history')", self._empty_dict()),
        ]
        return self._add("metadata", kind, items, _pyref(kind))

    def _empty_dict(self, paths: list[str] | None = None) -> dict[str, Any]:
        keys = {"type": _pyref(Symbol("builtins", "tuple")), "items": [], "metadata": None}
        return self._add("dict", Symbol("builtins", "dict"), [], keys, paths)

    def _add(
        self, name: str, kind: Symbol, items: list[tuple[str, Any]], metadata: Any, paths: list[str] | None = None
    ) -> dict[str, Any]:
        key = f"{name.lower()}_{len(self.objects) + 1}"
        node = {"type": _pyref(kind), "items": [list(item) for item in items], "metadata": metadata}
        self.objects[key] = node | ({"paths": paths} if paths else {})
        return {"type": "ref", "key": key}


def _pyref(symbol: Symbol) -> dict[str, str]:
    return {"type": "pyref", "module": symbol.module, "name": symbol.name}


def _to_yaml(value: Any) -> Any:
    """The form of NeMo's model.yaml, which is for people: nothing reads it."""
    if isinstance(value, Symbol):
        return {"_target_": f"{value.module}.{value.name}", "_call_": False}
    if isinstance(value, Call):
        target = {"_target_": f"{value.symbol.module}.{value.symbol.name}"}
        return target | {name: _to_yaml(argument) for name, argument in value.arguments.items()}
    return [_to_yaml(item) for item in value] if isinstance(value, list | tuple) else value
