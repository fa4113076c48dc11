"""The stages of a run, what each is made from, and which of them need not run again.

    model → prepare → import → pretrain → finetune → evaluate → export

`model` and `pretrain` exist in the rehearsal only. A stage's fingerprint is made of its own settings and of the
fingerprints of the stages before it that it reads, so a change anywhere re-runs exactly what depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import artifacts
from common.errors import LaunchError
from common.fields import from_tree, to_tree
from pipeline.run_folder import RunFolder
from recipes.schema.recipe import Model, Recipe

FORMAT = 1


@dataclass(frozen=True)
class Details:
    """Summary of a finished stage, stored in its record and shown in the table at the end of a run.

    Attributes:
        made: what it made, in words.
        seconds: that it took.
        checkpoint: that a training chose.
        macro_f1: of each system that was evaluated.
        largest_logit_difference: of the export in transformers to the model in training.
        restarts: how often the launch that finished it had to start it again.
    """

    made: str = "done"
    seconds: float = 0.0
    checkpoint: str | None = None
    macro_f1: dict[str, float] | None = None
    largest_logit_difference: float | None = None
    restarts: int = 0

    @property
    def summary(self) -> str:
        """What was made, and the restarts that it took."""
        return self.made + (f"; restarted {self.restarts}×" if self.restarts else "")


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        output: the folder that it writes.
        beside: what it writes there besides.
        settings: what of the recipe decides its output, as JSON can carry it.
        after: stages whose output it reads.
        trains: whether it runs in as many processes as training does.
        wanted: whether this recipe has the stage at all.
        format: of what it writes; raised when that changes, so that old output is not taken for current.
    """

    name: str
    output: Callable[[RunFolder], Path]
    settings: Callable[[RunFolder], dict[str, Any]]
    after: tuple[str, ...] = ()
    trains: bool = False
    wanted: Callable[[Recipe], bool] = lambda _: True
    beside: Callable[[RunFolder], tuple[Path, ...]] = lambda _: ()
    format: int = FORMAT


def _training(run: RunFolder) -> dict[str, Any]:
    batches = {name: value for name, value in run.tree["data"].items() if name not in ("source", "prepare")}
    return {"seed": run.recipe.seed, "model": run.tree["model"], "data": batches}


def _toy(run: RunFolder) -> dict[str, Any]:
    """The random model's sizes, and the tickets that its tokenizer learns its words from."""
    toy, source = run.recipe.model.toy, run.recipe.data.source
    if toy is None:
        return {}
    return {"toy": to_tree(toy), **(_tickets(run) if source != "sample" else {})}


def _tickets(run: RunFolder) -> dict[str, Any]:
    """The tickets, and how they are read."""
    return {"data": _source(run.recipe.data.source), "prepare": run.tree["data"].get("prepare")}


def _tokenizer(run: RunFolder) -> dict[str, Any]:
    """The files of a local model's tokenizer, which the prompts are made with."""
    files = run.model_files.get("files", {})
    files = {name: hash for name, hash in files.items() if name.endswith(".jinja") or "token" in name}
    return {"tokenizer": files} if files else {}


def _named(model: Model) -> dict[str, Any]:
    """What the recipe says of the base's experts, if it says anything: a base that is there already serves "auto"."""
    return {} if model.experts == "auto" else {"experts": model.experts}


STAGES: tuple[Stage, ...] = (
    Stage(
        "model",
        output=lambda run: Path(run.hf),
        settings=_toy,
        wanted=lambda recipe: recipe.model.toy is not None,
    ),
    Stage(
        "prepare",
        output=lambda run: run.data,
        settings=lambda run: (
            {
                **_tickets(run),
                "seq_length": run.recipe.data.seq_length,
                "packed": run.recipe.data.packed,
                **({"loss": run.recipe.data.loss} if run.recipe.data.loss else {}),
                **({"renamed": True} if run.recipe.pretraining else {}),
            }
            | _tokenizer(run)
        ),
        after=("model",),
        beside=lambda run: (run.renamed,) if run.recipe.pretraining else (),
    ),
    Stage(
        "import",
        output=lambda run: run.base,
        settings=lambda run: {"hf": run.recipe.model.hf} | run.model_files | _named(run.recipe.model),
        after=("model",),
    ),
    Stage(
        "pretrain",
        output=lambda run: run.pretrain,
        settings=lambda run: {**_training(run), "pretraining": run.tree["pretraining"]},
        after=("prepare", "import"),
        trains=True,
        wanted=lambda recipe: recipe.pretraining is not None,
    ),
    Stage(
        "finetune",
        output=lambda run: run.finetune,
        settings=lambda run: {
            **_training(run),
            **{name: run.tree.get(name) for name in ("trainer", "optim", "peft", "checkpoint", "patience")},
        },
        after=("prepare", "import", "pretrain"),
        trains=True,
    ),
    Stage(
        "evaluate",
        output=lambda run: run.evaluation,
        settings=lambda run: {"evaluation": run.tree.get("evaluation")},
        after=("prepare", "finetune"),
        trains=True,
        format=2,
    ),
    Stage(
        "export",
        output=lambda run: run.exported,
        settings=lambda run: {"export": run.tree.get("export")},
        after=("finetune", "evaluate"),
    ),
)


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages that this recipe has, in order."""
    return [stage for stage in STAGES if stage.wanted(recipe)]


def stage_named(name: str) -> Stage:
    """The stage of that name.

    Raises:
        LaunchError: there is none.
    """
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise LaunchError(f"there is no stage {name!r}: the stages are {', '.join(stage.name for stage in STAGES)}.")


def inputs_of(stage: Stage, run: RunFolder) -> dict[str, Any]:
    """Everything that decides a stage's output; its hash is the stage's fingerprint."""
    before = {
        name: fingerprint_of(stage_named(name), run) for name in stage.after if stage_named(name).wanted(run.recipe)
    }
    return {"stage": stage.name, "format": stage.format, "settings": stage.settings(run), "after": before}


def fingerprint_of(stage: Stage, run: RunFolder) -> str:
    """The fingerprint that the stage's record must carry to be current."""
    return artifacts.fingerprint(inputs_of(stage, run))


def record_of(stage: Stage, run: RunFolder) -> Path:
    """Where the run keeps the stage's manifest: beside the outputs, since one may lie outside the run and be shared."""
    return run.path / "stages" / f"{stage.name}.json"


def is_current(stage: Stage, run: RunFolder) -> bool:
    """Whether the stage's output is whole and was made from what the recipe says now."""
    return artifacts.is_current(stage.output(run), fingerprint_of(stage, run), record_of(stage, run))


def record(stage: Stage, run: RunFolder, details: Details) -> None:
    """Note that the stage's output is whole, with figures for the table at the end of the run."""
    file = record_of(stage, run)
    file.parent.mkdir(parents=True, exist_ok=True)
    noted = to_tree(details, omit_defaults=True)
    artifacts.write_manifest(stage.output(run), stage.name, inputs_of(stage, run), noted, file)


def details_of(stage: Stage, run: RunFolder) -> Details:
    """The details that `record` stored when the stage last finished; empty where it never did."""
    manifest = artifacts.read_manifest(stage.output(run), record_of(stage, run))
    return from_tree(Details, manifest.details, str(record_of(stage, run))) if manifest else Details(made="")


def _source(source: str) -> dict[str, Any]:
    """A ticket source by its content: a file's hash, a folder's files by theirs, or the name of a built-in source."""
    path = Path(source)
    if path.is_file():
        return {"source": path.name, "sha256": artifacts.hash_once(path)}
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {"source": {str(file.relative_to(path)): artifacts.hash_once(file) for file in files}}
    return {"source": source}
