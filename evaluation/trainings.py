"""What each training of a run added to its model."""

from __future__ import annotations

from typing import Any

from pipeline.history import last_loss, last_step, read_history
from pipeline.run_folder import RunFolder


def histories_of(run: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """The rows of history.jsonl of each training of a run."""
    pretraining = {"pretraining": read_history(run.pretrain)} if run.recipe.pretraining else {}
    return pretraining | {"fine-tuning": read_history(run.finetune)}


def contributions(run: RunFolder) -> list[str]:
    """What each training of a rehearsal taught; nothing of a published model."""
    if run.recipe.pretraining is None:
        return []
    histories = [read_history(folder) for folder in (run.pretrain, run.finetune)]
    losses = [f"{last_loss(rows):.3f}" for rows in histories]
    steps = run.recipe.pretraining.max_steps, last_step(histories[1])
    trained = "an adapter" if run.recipe.peft else "all weights"
    return [
        f"The base is a random model, trained in full for {steps[0]} steps on the training tickets, each queue under "
        f"the name of another (loss {losses[0]}): it reads tickets and writes names of queues, and routes wrong.",
        f"The tuned model is that base with {trained} trained for {steps[1]} steps on the same tickets under their own "
        f"names (loss {losses[1]}): the difference is fine-tuning's alone.",
    ]
