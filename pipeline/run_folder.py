"""One run: its recipe, where each stage's output lies, and where its processes write."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common import artifacts
from recipes.schema.recipe import Recipe, load_recipe, tree_of_recipe

RECIPE_FILE = "recipe.yaml"
RESTARTS = "NEMO_RUN_RESTARTS"
"""Variable that says how often this launch has started the stage again."""
LAUNCHER = "NEMO_RUN_LAUNCHER_PID"
"""Variable that names the process which waits for a local stage: the stage ends with it."""


@dataclass(frozen=True)
class RunFolder:
    """A run's recipe, and the folders of its stages below `path`."""

    path: Path
    recipe: Recipe

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Read a run folder.

        Raises:
            ConfigurationError: it holds no recipe.yaml.
        """
        return cls(path, load_recipe(path / RECIPE_FILE))

    @cached_property
    def tree(self) -> dict[str, Any]:
        """The recipe as plain values, without the fields that have their default values."""
        return tree_of_recipe(self.recipe)

    @property
    def hf(self) -> str | Path:
        """The base in Hugging Face form: the toy's folder, or what the recipe names."""
        return self.path / self.recipe.model.hf if self.recipe.model.toy else self.recipe.model.hf

    @property
    def model_files(self) -> dict[str, Any]:
        """Identity of a local model's files, for fingerprints: hashes of the small ones, sizes of the others.

        Empty where the model is named by a Hub id, or made by a stage.
        """
        folder = Path(self.recipe.model.hf)
        if self.recipe.model.toy or not folder.is_dir():
            return {}
        read = [file for file in folder.iterdir() if file.suffix in (".json", ".jinja", ".safetensors")]
        return {"files": {file.name: artifacts.hash_or_size(file) for file in sorted(read) if file.is_file()}}

    @property
    def base(self) -> Path:
        """The imported base as a NeMo checkpoint."""
        return self.path / self.recipe.model.nemo

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def renamed(self) -> Path:
        """The data under other names for its queues, which a rehearsal's base is trained on."""
        return self.path / "renamed"

    @property
    def pretrain(self) -> Path:
        return self.path / "pretrain"

    @property
    def finetune(self) -> Path:
        return self.path / "finetune"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def exported(self) -> Path:
        return self.path / "exported"

    def log(self, stage: str, rank: int = 0) -> Path:
        """Where a stage's processes write everything that does not belong on the console."""
        return self.path / "logs" / (f"{stage}.log" if rank == 0 else f"{stage}.rank{rank}.log")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / RECIPE_FILE).is_file()


def run_above(path: Path) -> RunFolder | None:
    """The run folder that a path lies in."""
    folders = [parent for parent in path.resolve().parents if is_run(parent)]
    return RunFolder.open(folders[0]) if folders else None
