"""The stage `pretrain` of a rehearsal: a random model reads nothing yet, and LoRA needs one that does."""

from __future__ import annotations

from dataclasses import replace

from common.errors import LaunchError
from pipeline.checkpoints import last_checkpoint
from pipeline.history import last_loss, read_history
from pipeline.run_folder import RunFolder
from pipeline.stage import Details
from recipes.schema.recipe import Pretraining, Recipe
from recipes.schema.trees import Deferred
from training.train import Training


def pretrain_base(run: RunFolder) -> Details:
    """Train the random base in full on the training tickets, each queue under the name of another."""
    settings = run.recipe.pretraining
    if settings is None:
        raise LaunchError("this recipe has no pretraining: the stage `pretrain` belongs to the rehearsal.")
    if not run.renamed.is_dir():
        raise LaunchError(f"{run.renamed} is missing: launch the recipe again with --from prepare.")
    Training(
        "pretrain", _in_full(run.recipe, settings), start=run.base, like=run.base, dataset=run.renamed, out=run.pretrain
    ).run()
    loss = last_loss(read_history(run.pretrain))
    made = f"random base trained in full on the tickets under other queues' names, loss {loss:.3f}"
    return Details(made, checkpoint=str(last_checkpoint(run.pretrain)))


def _in_full(recipe: Recipe, settings: Pretraining) -> Recipe:
    """The recipe's training, but of all parameters and with the settings of pretraining."""
    optimizer, trainer = recipe.optim.arguments["config"], recipe.trainer
    config = Deferred(optimizer.target, {**optimizer.arguments, "lr": settings.lr})
    return replace(
        recipe,
        optim=Deferred(recipe.optim.target, recipe.optim.arguments | {"config": config}),
        trainer=Deferred(trainer.target, {**trainer.arguments, "max_steps": settings.max_steps}),
        peft=None,
        patience=0,
    )
