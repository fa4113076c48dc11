"""Run folders of version 0.1: what is finished there stays finished, and what was interrupted goes on.

A stage's fingerprint is made of its recipe's tree, and the tree of version 0.1 named this package's classes. Where a
record carries the fingerprint that the stored recipe had then, it gets the one that the same recipe has today.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import artifacts
from pipeline.resume import begun_note
from pipeline.run_folder import RECIPE_FILE, RunFolder, is_run
from pipeline.stage import fingerprint_of, inputs_of, record_of, stages_of
from recipes.schema.former import is_former
from recipes.schema.recipe import dump_recipe, read_tree, recipe_from


@dataclass(frozen=True)
class _FormerRun(RunFolder):
    """A run as version 0.1 saw it; `stored` is its recipe.yaml."""

    stored: dict[str, Any]

    @property
    def tree(self) -> dict[str, Any]:  # type: ignore[override]
        return self.stored

    @property
    def model_files(self) -> dict[str, Any]:
        return {}


def upgrade_run(path: Path) -> bool:
    """Bring a run folder of version 0.1 to today's form; returns whether it was one.

    Raises:
        ConfigurationError: its recipe.yaml is damaged.
    """
    if not is_run(path):
        return False
    stored = read_tree(path / RECIPE_FILE)
    if not is_former(stored):
        return False
    recipe = recipe_from(stored, str(path / RECIPE_FILE))
    former, run = _FormerRun(path, recipe, stored), RunFolder(path, recipe)
    for stage in stages_of(recipe):
        before, after = fingerprint_of(stage, former), fingerprint_of(stage, run)
        manifest = artifacts.read_manifest(stage.output(run), record_of(stage, run))
        if manifest is not None and manifest.fingerprint == before:
            renewed = replace(manifest, fingerprint=after, inputs=inputs_of(stage, run))
            artifacts.store_manifest(renewed, record_of(stage, run))
        begun = begun_note(run, stage)
        if begun.is_file() and begun.read_text() == before:
            artifacts.write_text(begun, after)
    artifacts.write_text(path / RECIPE_FILE, dump_recipe(recipe))  # last: a killed upgrade begins again
    return True
