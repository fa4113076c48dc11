"""From a recipe file and `key=value` to a run folder with recipe.yaml in it."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from common import artifacts
from common.errors import ConfigurationError
from common.values import one_line
from pipeline.run_folder import RECIPE_FILE, RunFolder, is_run
from recipes.schema.recipe import Recipe, dump_recipe, recipe_from
from recipes.schema.trees import tree_of


def make_run(file: Path, overrides: list[str], runs: Path) -> RunFolder:
    """Load the recipe and apply the overrides: the run that it makes. Nothing is written.

    The run is named after the recipe file and, where there are overrides, their hash: another configuration never
    lands in the folder of a finished run, and the same command finds its own again. `name=` chooses another name.

    Raises:
        ConfigurationError: no such recipe, or an override that does not fit.
    """
    tree = configured(file, overrides)
    _resolve_paths(tree)
    recipe = recipe_from(tree, str(file))
    return RunFolder(folder_named(recipe.name, runs), recipe)


def folder_named(name: str, runs: Path) -> Path:
    """The whole path of a folder of that name inside `runs`.

    Raises:
        ConfigurationError: it would stand elsewhere, or shells or NeMo would take it apart.
    """
    if not re.fullmatch(r"(?![.-])[\w.+-]+", name):
        raise ConfigurationError(
            f"name={one_line(ascii(name), 60)} is no name of one folder inside {runs}: use letters, digits and "
            "_ . + - only; --runs chooses where it stands."
        )
    path = (runs / name).resolve()
    if not re.fullmatch(r"[\w./+-]+", str(path)):
        raise ConfigurationError(
            f"{path} holds characters that shells or NeMo take apart: choose other --runs or name=."
        )
    return path


def write_run(run: RunFolder) -> None:
    """Write `recipe.yaml` into the run folder, where the stages read it.

    Raises:
        ConfigurationError: the folder holds files and is no run's.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    if not is_run(run.path) and (others := [path.name for path in run.path.iterdir() if path.suffix != ".tmp"]):
        raise ConfigurationError(
            f"{run.path} holds {min(others)} and no {RECIPE_FILE}: it is no run, choose another name= or --runs."
        )
    artifacts.write_text(run.path / RECIPE_FILE, dump_recipe(run.recipe))


def load(file: Path, overrides: list[str]) -> Recipe:
    """The recipe of a file, overrides applied.

    Raises:
        ConfigurationError: no such recipe, or an override that does not fit.
    """
    return recipe_from(configured(file, overrides), str(file))


def _resolve_paths(tree: dict[str, Any]) -> None:
    """Name local inputs by their whole path: a stage may run in another folder than the launch."""
    named = (
        [(tree["data"], "source")] if tree["model"].get("toy") else [(tree["data"], "source"), (tree["model"], "hf")]
    )
    for node, name in named:
        if Path(str(node.get(name, ""))).exists():
            node[name] = str(Path(node[name]).resolve())


def configured(file: Path, overrides: list[str]) -> dict[str, Any]:
    """The recipe of a file as a tree of plain values, overrides applied."""
    from recipes.schema.overrides import apply_overrides

    module = _load(file)
    recipe = module.recipe()
    given_name = recipe.name
    apply_overrides(recipe, _with_preset(module, file, overrides))
    if overrides and recipe.name == given_name:
        recipe.name = f"{given_name}-{hashlib.sha256(chr(0).join(sorted(overrides)).encode()).hexdigest()[:8]}"
    return tree_of(recipe)


def presets_of(file: Path) -> list[str]:
    """Names of a recipe file's presets.

    Raises:
        ConfigurationError: no such recipe.
    """
    return list(getattr(_load(file), "PRESETS", {}))


def _with_preset(module: Any, file: Path, overrides: list[str]) -> list[str]:
    """The overrides behind `preset=NAME`, then the others, which have the last word."""
    presets: dict[str, tuple[str, ...]] = getattr(module, "PRESETS", {})
    chosen: list[str] = []
    for override in overrides:
        if not override.startswith("preset="):
            continue
        name = override.removeprefix("preset=")
        if name not in presets:
            hint = f"its presets are {', '.join(presets)}" if presets else "it has none"
            raise ConfigurationError(f"{file} has no preset {name!r}: {hint}.")
        chosen += presets[name]
    return chosen + [override for override in overrides if not override.startswith("preset=")]


def _load(file: Path) -> Any:
    if not file.is_file():
        recipes = (
            sorted(str(path) for path in file.parent.glob("*.py") if _is_recipe(path)) if file.parent.is_dir() else []
        )
        hint = f"recipes beside it are {', '.join(recipes)}" if recipes else "recipes/ of the repository holds some"
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
    except ImportError as error:
        raise ConfigurationError(
            f"{file} imports what is not there ({error}): what recipes of version 0.1 imported from recipes.config "
            "is in recipes.schema.recipe and recipes.schema.trees now; see CHANGELOG.md."
        ) from None
    if not callable(getattr(module, "recipe", None)):
        raise ConfigurationError(f"{file} has no function recipe(): see recipes/gpt_oss_tiny_lora.py.")
    return module


def _is_recipe(file: Path) -> bool:
    return "def recipe()" in file.read_text(encoding="utf-8", errors="ignore")
