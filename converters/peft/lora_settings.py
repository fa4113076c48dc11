"""adapter_config.json: ranks and scales of the modules of a PEFT LoRA, and what no NeMo LoRA can be."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from common.errors import CheckpointError
from common.foreign import read_json

T = TypeVar("T")
SETTINGS = "adapter_config.json"
MERGE = "merge it with PEFT (PeftModel.merge_and_unload), save the model, and import that"

# Initializations that leave the base as it is (peft 0.21, tuners/lora/layer.py).
_OF_THE_BASE_ALONE = (True, False, None, "gaussian", "eva", "orthogonal")
_INTO_PLAIN_LORA = "save it with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
_VARIANTS = {
    "use_dora": "DoRA (use_dora): its magnitudes are no product of two factors",
    "use_qalora": "QA-LoRA (use_qalora)",
    "use_bdlora": "BD-LoRA (use_bdlora)",
    "kasa_config": "KaSA (kasa_config), which changes the base",
    "monteclora_config": "MonteCLoRA (monteclora_config)",
    "arrow_config": "Arrow (arrow_config)",
    "alora_invocation_tokens": "an activated LoRA (alora_invocation_tokens), which the first tokens go without",
    "layer_replication": "layer_replication, which adds layers",
    "lora_bias": "lora_bias",
    "trainable_token_indices": "trainable_token_indices",
}


class LoraSettings:
    """The settings of a plain LoRA, read from a folder.

    Raises:
        CheckpointError: the file is missing or damaged, or it is another kind of adapter.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / SETTINGS
        try:
            self.raw: dict[str, Any] = read_json(folder, SETTINGS)
            self._rank, self._alpha = _rank(self.raw["r"]), Fraction(self.raw["lora_alpha"])
            self._ranks = {_pattern(key): _rank(value) for key, value in _fields(self.raw, "rank_pattern")}
            self._alphas = {_pattern(key): Fraction(value) for key, value in _fields(self.raw, "alpha_pattern")}
            self._parameters = [str(name) for name in self.raw.get("target_parameters") or []]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, re.error):
            raise CheckpointError(f"{self.file} is missing or damaged: name a PEFT folder.") from None
        self._refuse_what_is_no_lora()

    def rank_of(self, module: str) -> int:
        """Rank of a module's adapter, by its name in the base model, such as model.layers.0.self_attn.q_proj."""
        return _first(self._ranks, module, self._rank)

    def scale_of(self, module: str) -> Fraction:
        """Factor of lora_B · lora_A: alpha / r, or alpha / √r where rsLoRA is used."""
        alpha, rank = _first(self._alphas, module, self._alpha), self.rank_of(module)
        return Fraction(float(alpha) / math.sqrt(rank)) if self.raw.get("use_rslora") else alpha / rank

    def adapts(self, parameter: str) -> bool:
        """Whether a parameter of the base model has a wrapper of its own, as the experts' have."""
        return any(parameter == end or parameter.endswith("." + end) for end in self._parameters)

    def _refuse_what_is_no_lora(self) -> None:
        kind, start = self.raw.get("peft_type", "LORA"), self.raw.get("init_lora_weights", True)
        if kind != "LORA":
            raise CheckpointError(f"{self.file} describes an adapter of type {kind}, and NeMo has LoRA: {MERGE}.")
        if start not in _OF_THE_BASE_ALONE:
            remedy = "merge it into that base with PEFT, and import the merged model"
            remedy = remedy if start == "loftq" else f"{_INTO_PLAIN_LORA}, or {MERGE}"
            raise CheckpointError(
                f"{self.file} says init_lora_weights={start!r}: its factors belong to a base that this initialization "
                f"changed, not to the published one; {remedy}."
            )
        for option, what in _VARIANTS.items():
            if self.raw.get(option):
                raise CheckpointError(f"{self.file} describes {what}, and NeMo's LoRA has no such thing: {MERGE}.")
        if (bias := self.raw.get("bias", "none")) != "none":
            raise CheckpointError(f"{self.file} trains biases (bias={bias!r}), and NeMo's LoRA has none: {MERGE}.")


def _fields(raw: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    return list((raw.get(name) or {}).items())


def _rank(value: Any) -> int:
    if int(value) < 1:
        raise ValueError(value)
    return int(value)


def _pattern(key: str) -> re.Pattern[str]:
    """Of the modules that a key means: those whose names end so (peft 0.21, `get_pattern_key`)."""
    return re.compile(rf"(.*\.)?({key})$")


def _first(patterns: Mapping[re.Pattern[str], T], module: str, default: T) -> T:
    return next((value for pattern, value in patterns.items() if pattern.match(module)), default)
