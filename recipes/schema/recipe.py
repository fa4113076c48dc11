"""The types of a recipe, and its form in a run folder's recipe.yaml."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from common import fields
from common.errors import ConfigurationError
from common.values import checked_size, one_line
from common.yaml_text import parse_yaml
from data_prep.options import PrepareOptions
from data_prep.turns import Loss
from modeling.hf_config import find_config
from modeling.layouts import Batch, Layout
from modeling.lora_targets import ATTENTION, EXPERTS, LoraTargets
from modeling.precision import Precision
from planning.memory import TrainingPlan
from recipes.schema.former import renamed
from recipes.schema.trees import Deferred


@dataclass(frozen=True)
class ToyModel:
    """Sizes of the random gpt-oss that the rehearsal makes for itself, in the fields of config.json."""

    num_hidden_layers: int = 4
    num_local_experts: int = 4
    num_experts_per_tok: int = 2
    hidden_size: int = 64
    intermediate_size: int = 96
    head_dim: int = 32
    num_attention_heads: int = 4
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
    precision: Precision = "bf16"
    """Of parameters in training; the optimizer's settings and the memory that `plan` counts follow from it."""
    experts: Literal["auto", "bf16", "mxfp4"] = "auto"
    """How the base keeps its experts: mxfp4 takes a third of the memory and cannot be trained in full; auto is mxfp4
    where the recipe trains adapters and the model is published so."""
    config: Deferred = field(default_factory=lambda: Deferred("nemo.collections.llm.GPTOSSConfig"))
    """Fields of NeMo's model configuration that differ from what config.json says (recompute, fusions)."""
    toy: ToyModel | None = None


@dataclass(frozen=True)
class TicketData:
    """Where the tickets come from, how they are prepared and how they are batched."""

    source: str = "sample"
    """`sample`, `kaggle`, a file of tickets or of conversations (`messages`), a folder of files, or one that
    `nemo-run prepare` wrote, which is used as it is."""
    prepare: PrepareOptions = field(default_factory=PrepareOptions)
    loss: Loss | None = None
    """Which of the assistant's turns of a conversation are learnt, `all` or `last`, instead of `prepare.loss`."""
    seq_length: int = 2048
    packed: bool = False
    """Several tickets in each sequence, none of which sees another; needs Transformer Engine (modeling.attention)."""
    micro_batch_size: int = 1
    global_batch_size: int = 16
    epochs: float | None = None
    """Passes over the training data, instead of `trainer.max_steps`."""
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ConfigurationError(f"data.epochs is {self.epochs}: give a number above 0, such as 2.")


@dataclass(frozen=True)
class Pretraining:
    """Full training of a random base on the tickets under other queues' names, so that LoRA has a model to adapt."""

    max_steps: int = 200
    lr: float = 1e-3


@dataclass(frozen=True)
class Evaluation:
    """How the base and the tuned model are compared on the test split."""

    max_tickets: int = 0
    """Evaluate on the first so many tickets of the split only; 0 for all."""
    batch_size: int = 64


@dataclass(frozen=True)
class Export:
    """The Hugging Face folder that the run ends with."""

    weights: Literal["bf16", "fp32", "mxfp4"] = "bf16"
    shard_size: Annotated[str, checked_size] = "5GB"


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
    hang_minutes: float = 30.0
    """A training in which no batch ends for so long is ended; where the profile has `retries`, it is started again."""
    logger: Literal["tensorboard", "wandb", "mlflow", "trackio"] = "tensorboard"
    """Where the figures of a training go besides TensorBoard's files and history.jsonl in the run folder."""
    pretraining: Pretraining | None = None
    evaluation: Evaluation = Evaluation()
    export: Export = Export()
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.model.experts == "mxfp4" and not self.may_pack:
            raise ConfigurationError(
                "model.experts=mxfp4 is for LoRA: training in full changes the experts, set model.experts=bf16."
            )
        bf16 = self.optimizer.get("bf16", self.model.precision == "bf16")
        if bf16 != (self.model.precision == "bf16"):
            raise ConfigurationError(
                f"optim.config.bf16={bf16} contradicts model.precision={self.model.precision}: set the precision alone."
            )

    @property
    def may_pack(self) -> bool:
        """Whether the experts may stay MXFP4: no training changes them."""
        return self.peft is not None and self.pretraining is None

    @property
    def optimizer(self) -> dict[str, Any]:
        """Arguments of Megatron's `OptimizerConfig` that the recipe names."""
        config = self.optim.arguments.get("config")
        return config.arguments if isinstance(config, Deferred) else {}

    @property
    def max_steps(self) -> int:
        """Optimizer steps of fine-tuning, unless `data.epochs` says otherwise (pipeline.epochs)."""
        return int(self.trainer.arguments["max_steps"])

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
    """The layers that the recipe's `peft` adapts, for the memory model and the count of FLOPs; None without `peft`."""
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


def plan_of(recipe: Recipe) -> TrainingPlan | None:
    """The recipe's training as the memory model sees it; None where its config.json is not at hand."""
    try:
        config = find_config(str(recipe.model.hf))
    except ConfigurationError:
        return None
    precision, data = recipe.model.precision, recipe.data
    return TrainingPlan(
        config,
        Batch(data.seq_length, data.micro_batch_size, data.global_batch_size, data.packed),
        lora_targets(recipe),
        "full" if recipe.model.config.arguments.get("recompute_granularity") == "full" else "none",
        precision,
        recipe.optimizer.get("use_distributed_optimizer", precision == "bf16"),
        packs_experts(recipe, config.has_mxfp4),
        int(recipe.model.config.arguments.get("decoded_expert_bytes", TrainingPlan.decoded_bytes)),
    )


def packs_experts(recipe: Recipe, published: bool) -> bool:
    """Whether the recipe's base keeps its experts MXFP4; `published` says whether the model has them so."""
    auto = recipe.model.experts == "auto" and recipe.may_pack and published
    return recipe.model.experts == "mxfp4" or auto


def recipe_from(tree: Any, source: str) -> Recipe:
    """The recipe that a tree describes; `source` is what errors call it.

    Raises:
        ConfigurationError: a field is unknown or missing, or a value does not fit it.
    """
    return fields.from_tree(Recipe, renamed(tree), source)


def tree_of_recipe(recipe: Recipe) -> dict[str, Any]:
    """The inverse of `recipe_from`; fields that have their default values are left out."""
    return fields.to_tree(recipe, omit_defaults=True)


def load_recipe(file: Path) -> Recipe:
    """Read `recipe.yaml` of a run folder.

    Raises:
        ConfigurationError: the file is missing or is no recipe.
    """
    return recipe_from(read_tree(file), str(file))


def read_tree(file: Path) -> Any:
    """The tree in `recipe.yaml`, as it stands there.

    Raises:
        ConfigurationError: the file is missing or not YAML.
    """
    try:
        return parse_yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{file} is missing: name a run folder that nemo-run launch made.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ConfigurationError) as error:
        raise ConfigurationError(f"{file} is not YAML ({one_line(error)}): launch the recipe again.") from None


def dump_recipe(recipe: Recipe) -> str:
    """A recipe as the text of `recipe.yaml`: every field, in its order."""
    return yaml.safe_dump(fields.to_tree(recipe), sort_keys=False, allow_unicode=True)
