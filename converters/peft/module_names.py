"""Names of adapted modules in a PEFT file, from those of the mapping table."""

from __future__ import annotations

from collections.abc import Callable

from converters.mapping import TABLE, Entry

ROOT = "base_model.model."
ADAPTED: tuple[Entry, ...] = tuple(
    e for e in TABLE if e.per_layer and e.nemo.endswith(".weight") and ".linear_" in e.nemo
)
"""The weights that can carry an adapter."""
ROUTER: tuple[Entry, ...] = tuple(e for e in TABLE if ".router." in e.nemo)
"""What `modules_to_save: [router]` trains in full."""
# A parameter's wrapper stands in the module of the one before it: down_proj's around gate_up_proj's.
_INNER, _OUTER = "gate_up_proj", "down_proj"


def modules_of(entry: Entry, layer: int) -> list[str]:
    """The linear layers or, of experts, the parameter, as the base model names them."""
    return [name.format(layer=layer).removesuffix(".weight") for name in entry.hf]


def wrapper_of(parameter: str, is_adapted: Callable[[str], bool]) -> str:
    """The module that holds the factors of an experts' parameter; `is_adapted` says of which parameters there are."""
    module, _, name = parameter.rpartition(".")
    is_inner = name == _INNER and is_adapted(f"{module}.{_OUTER}")
    return f"{ROOT}{module}.base_layer" if is_inner else ROOT + module


def single_of(parameter: str, expert: int) -> str:
    """The linear layer of one expert in a model that has one each, as Unsloth's: gate_up_projs.0, down_projs.0."""
    return f"{parameter}s.{expert}"


def factor(module: str, side: str) -> str:
    """Name of lora_A's or lora_B's tensor."""
    return f"{module}.lora_{side}.weight"
