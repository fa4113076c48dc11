"""What a recipe is made of, and the two forms it travels in.

A recipe file returns a tree of NeMo-Run configuration objects: `run.Config` of the dataclasses below for what this
package does itself, and `lazy(...)` for NeMo's and Megatron's own classes, which only the process that trains imports.
The tree is stored as `recipe.yaml` in the run folder; a stage reads it back without NeMo-Run.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from data_prep.options import PrepareOptions
from errors import ConfigurationError
from modeling.layouts import Layout
from modeling.memory import ATTENTION, EXPERTS, LoraTargets

if TYPE_CHECKING:
    import nemo_run as run


@dataclass(frozen=True)
class Deferred:
    """A class of another package and its arguments, not imported yet."""

    target: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def build(self, **more: Any) -> Any:
        """Import the class and call it with the arguments; `more` has the last word."""
        arguments = {name: build(value) for name, value in self.arguments.items()}
        return resolve(self.target)(**(arguments | more))


@dataclass(frozen=True)
class ToyModel:
    """Sizes of the random gpt-oss that the rehearsal makes for itself, in the fields of config.json."""

    num_hidden_layers: int = 4
    num_local_experts: int = 4
    num_experts_per_tok: int = 2
    hidden_size: int = 64
    intermediate_size: int = 96
    head_dim: int = 16
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    sliding_window: int = 32
    vocab_size: int = 2048
    seed: int = 0


@dataclass(frozen=True)
class Model:
    """The model to start from."""

    hf: str
    """Hugging Face folder or Hub id; in a rehearsal, where the toy is written (relative to the run folder)."""
    nemo: str
    """Where its NeMo checkpoint lies or will be written; relative names are inside the run folder."""
    precision: str = "bf16"
    """Of parameters in training: "bf16", or "fp32" for the rehearsal."""
    config: Deferred = Deferred("nemo.collections.llm.GPTOSSConfig")
    """Fields of NeMo's model configuration that differ from what config.json says (recompute, fusions)."""
    toy: ToyModel | None = None


@dataclass(frozen=True)
class TicketData:
    """Where the tickets come from, how they are prepared and how they are batched."""

    source: str = "sample"
    """`sample`, `kaggle`, a file of tickets or of conversations (`messages`), a folder of files, or one that
    `nemo-run prepare` wrote, which is used as it is."""
    prepare: PrepareOptions = field(default_factory=PrepareOptions)
    seq_length: int = 2048
    packed: bool = False
    """Several tickets in each sequence, none of which sees another; needs Transformer Engine (modeling.attention)."""
    micro_batch_size: int = 1
    global_batch_size: int = 16
    seed: int = 1234


@dataclass(frozen=True)
class Pretraining:
    """Full training of a random base on the training tickets, so that LoRA has a model to adapt."""

    max_steps: int = 200
    lr: float = 1e-3
    micro_batch_size: int = 8
    global_batch_size: int = 16


@dataclass(frozen=True)
class Evaluation:
    """How the base and the tuned model are compared on the test split."""

    max_tickets: int = 0
    """Evaluate on the first so many tickets of the split only; 0 for all."""
    batch_size: int = 64


@dataclass(frozen=True)
class Export:
    """The Hugging Face folder that the run ends with."""

    weights: str = "bf16"
    shard_size: str = "5GB"


@dataclass(frozen=True)
class Recipe:
    """One fine-tuning, from tickets to an exported model."""

    name: str
    model: Model
    data: TicketData
    trainer: Deferred
    optim: Deferred
    checkpoint: Deferred
    peft: Deferred | None = None
    patience: int = 3
    """Stop after so many validations in a row without a lower loss; 0 for never."""
    logger: Literal["tensorboard", "wandb", "mlflow", "trackio"] = "tensorboard"
    """Where the figures of a training go besides TensorBoard's files and history.jsonl in the run folder."""
    pretraining: Pretraining | None = None
    evaluation: Evaluation = Evaluation()
    export: Export = Export()
    seed: int = 1234
    raw: dict[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def processes(self) -> int:
        """Processes a node that train, one a GPU (or CPU worker)."""
        return int(self.trainer.arguments.get("devices", 1))

    @cached_property
    def nodes(self) -> int:
        """Nodes that train."""
        return int(self.trainer.arguments.get("num_nodes", 1))

    @cached_property
    def layout(self) -> Layout:
        """The parallel layout that the strategy names."""
        strategy = self.trainer.arguments["strategy"].arguments
        return Layout(
            int(strategy.get("tensor_model_parallel_size", 1)),
            int(strategy.get("expert_model_parallel_size", 1)),
            int(strategy.get("pipeline_model_parallel_size", 1)),
            int(strategy.get("context_parallel_size", 1)),
        )


def lora_targets(recipe: Recipe) -> LoraTargets | None:
    """What the recipe's `peft` adapts, as the memory model and the count of FLOPs see it; None without `peft`."""
    if recipe.peft is None:
        return None
    given = recipe.peft.arguments
    layers = given.get("expert_layers")
    return LoraTargets(
        int(given.get("dim", 32)),
        tuple(given.get("target_modules") or (*ATTENTION, *EXPERTS)),
        None if layers is None else tuple(layers),
        bool(given.get("train_router", False)),
    )


def lazy(target: str, **arguments: Any) -> run.Config[Any]:
    """A NeMo-Run configuration of `target` ("package.module.Class") that imports it only when it is built."""
    import nemo_run as run
    from nemo_run.cli.lazy import LazyTarget

    return run.Config(LazyTarget(target), **arguments)


def resolve(target: str) -> Any:
    """The object that `package.module.name` names, importing its module.

    Raises:
        ConfigurationError: there is no such module or name.
    """
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{target} cannot be imported ({error}): install the package with [nemo].") from None


def to_tree(value: Any) -> Any:
    """A configuration as plain dictionaries; `_target_` names one of our dataclasses, `_lazy_` a class of others."""
    import fiddle as fdl
    from nemo_run.cli.lazy import LazyTarget

    if isinstance(value, fdl.Buildable):
        target = fdl.get_callable(value)
        arguments = {name: to_tree(item) for name, item in fdl.ordered_arguments(value).items()}
        if isinstance(target, LazyTarget):
            return {"_lazy_": target.import_path, **arguments}
        return {"_target_": f"{target.__module__}.{target.__qualname__}", **arguments}
    if isinstance(value, Mapping):
        return {name: to_tree(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_tree(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def build(tree: Any) -> Any:
    """The objects that a tree of `to_tree` describes: our dataclasses, and `Deferred` for everything else."""
    if isinstance(tree, Deferred):
        return tree.build()
    if isinstance(tree, list):
        return [build(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    arguments = {name: item for name, item in tree.items() if name not in ("_target_", "_lazy_")}
    if "_lazy_" in tree:
        return Deferred(tree["_lazy_"], {name: build(item) for name, item in arguments.items()})
    built = {name: build(item) for name, item in arguments.items()}
    if "_target_" not in tree:
        return built
    cls = resolve(tree["_target_"])
    if not is_dataclass(cls):
        raise ConfigurationError(
            f"{tree['_target_']} is no part of a recipe: use lazy() for classes of other packages."
        )
    return cls(**built)  # type: ignore[operator]


def load_recipe(file: Path) -> Recipe:
    """Read `recipe.yaml` of a run folder.

    Raises:
        ConfigurationError: the file is missing or is no recipe.
    """
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{file} is missing: name a run folder that nemo-run launch made.") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file} is not YAML ({error}): launch the recipe again.") from None
    recipe = build(tree)
    if not isinstance(recipe, Recipe):
        raise ConfigurationError(f"{file} describes no recipe: launch the recipe again.")
    recipe.raw.update(tree)
    return recipe


def dump_recipe(tree: dict[str, Any]) -> str:
    """A recipe's tree as YAML, fields in the order of the recipe."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
