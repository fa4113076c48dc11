"""How long fine-tuning takes where the recipe says it in epochs: that is known when the tickets are prepared."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from data_prep.prepared import training_samples
from recipes.schema.recipe import Recipe
from recipes.schema.trees import Deferred


def samples_an_epoch(recipe: Recipe, data: Path) -> int:
    """Rows or packs that one pass over the training data reads.

    Raises:
        DataError: the folder's report.json is missing or damaged.
    """
    return training_samples(data, recipe.data.seq_length if recipe.data.packed else None)


def in_steps(recipe: Recipe, data: Path) -> Recipe:
    """The recipe with `data.epochs` as `trainer.max_steps`: passes over the rows of `data`, or over its packs.

    Raises:
        DataError: the folder's report.json is missing or damaged.
    """
    epochs = recipe.data.epochs
    if epochs is None:
        return recipe
    steps = max(1, math.ceil(epochs * samples_an_epoch(recipe, data) / recipe.data.global_batch_size))
    arguments = {**recipe.trainer.arguments, "max_steps": steps}
    return replace(recipe, trainer=Deferred(recipe.trainer.target, arguments))
