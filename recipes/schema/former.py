"""Read recipes that version 0.1 stored in run folders, by translating them to today's names."""

from __future__ import annotations

from typing import Any

_TARGET, _LAZY = "_target_", "_lazy_"
_MOVED = {"recipes.saving.BestAndLast": "training.callbacks.best_and_last.BestAndLast"}
_DERIVED = ("bf16", "use_distributed_optimizer")
"""Arguments of the optimizer that follow from the precision, unless they say something else."""

_NOW_THE_DATAS = ("micro_batch_size", "global_batch_size")
"""Fields of pretraining that 0.1 had; it takes the batches of `data` now."""
_TOY = {"head_dim": 16, "num_attention_heads": 8}
"""Sizes of a toy that 0.1 left out of a stored recipe: its defaults."""


def renamed(tree: Any) -> Any:
    """A recipe's tree with today's names. Version 0.1 named the class of each part; a recipe's fields say them now."""
    if isinstance(tree, list):
        return [renamed(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    fields = {name: renamed(value) for name, value in tree.items() if name != _TARGET}
    if is_former(tree) and isinstance(fields.get("optim"), dict):
        bf16 = fields["model"].get("precision", "bf16") == "bf16"
        config = fields["optim"].get("config", {})
        fields["optim"]["config"] = {n: v for n, v in config.items() if not (n in _DERIVED and v == bf16)}
    if str(tree.get(_TARGET)).endswith(".ToyModel"):
        fields = _TOY | fields
    if isinstance(fields.get("pretraining"), dict):
        fields["pretraining"] = {n: v for n, v in fields["pretraining"].items() if n not in _NOW_THE_DATAS}
    if _LAZY in fields:
        fields[_LAZY] = _MOVED.get(fields[_LAZY], fields[_LAZY])
    return fields


def is_former(tree: Any) -> bool:
    """Whether version 0.1 stored this tree."""
    return isinstance(tree, dict) and _TARGET in tree
