"""From a recipe file and `key=value` to a run folder with recipe.yaml in it."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import artifacts
from errors import ConfigurationError
from recipes import config, pipeline


def make_run(file: Path, overrides: list[str], runs: Path, *, write: bool = True) -> pipeline.RunFolder:
    """Load the recipe, apply the overrides and write `RUNS/NAME/recipe.yaml`.

    The run is named after the recipe file and, where there are overrides, their hash: another configuration never
    lands in the folder of a finished run, and the same command finds its own again. `name=` chooses another name.

    Raises:
        ConfigurationError: no such recipe, or an override that does not fit.
    """
    tree = configured(file, overrides)
    recipe = config.build(tree)
    path = (runs / str(recipe.name)).resolve()
    if write:
        path.mkdir(parents=True, exist_ok=True)
        artifacts.write_text(path / pipeline.RECIPE_FILE, config.dump_recipe(tree))
    recipe.raw.update(tree)
    return pipeline.RunFolder(path, recipe)


def configured(file: Path, overrides: list[str]) -> dict[str, Any]:
    """The recipe of a file as a tree of plain values, overrides applied."""
    from recipes.overrides import apply_overrides

    recipe = _load(file)
    given_name = recipe.name
    apply_overrides(recipe, overrides)
    if overrides and recipe.name == given_name:
        recipe.name = f"{given_name}-{hashlib.sha256(chr(0).join(sorted(overrides)).encode()).hexdigest()[:8]}"
    return config.to_tree(recipe)


def _load(file: Path) -> Any:
    if not file.is_file():
        known = (
            sorted(str(path) for path in file.parent.glob("*.py") if _is_recipe(path)) if file.parent.is_dir() else []
        )
        hint = f"recipes beside it are {', '.join(known)}" if known else "recipes/ of the repository holds some"
        raise ConfigurationError(f"there is no recipe file {file}: {hint}.")
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{file} is no Python file: a recipe is one, with a function recipe().")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigurationError(f"{file} is not valid Python (line {error.lineno}: {error.msg}).") from None
    if not callable(getattr(module, "recipe", None)):
        raise ConfigurationError(f"{file} has no function recipe(): see recipes/gpt_oss_tiny_lora.py.")
    return module.recipe()


def _is_recipe(file: Path) -> bool:
    return "def recipe()" in file.read_text(encoding="utf-8", errors="ignore")
