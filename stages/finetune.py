"""The stage `finetune`: NeMo's `llm.finetune` on the prepared tickets."""

from __future__ import annotations

from pipeline.checkpoints import best_checkpoint, start_of, step_of, validation_loss
from pipeline.epochs import in_steps
from pipeline.history import last_loss, last_step, read_history
from pipeline.run_folder import RunFolder
from pipeline.stage import Details
from training.train import Training


def finetune_model(run: RunFolder) -> Details:
    """Fine-tune by LoRA where the recipe has `peft`, else all parameters; the best checkpoint is the one chosen."""
    recipe = in_steps(run.recipe, run.data)
    Training("finetune", recipe, start=start_of(run), like=run.base, dataset=run.data, out=run.finetune).run()
    what = "adapter" if run.recipe.peft else "model, all weights"
    rows = read_history(run.finetune)
    made = f"{what}, loss {last_loss(rows):.3f}"
    best = best_checkpoint(run.finetune)
    if (loss := validation_loss(best)) is not None:
        made += f"; validation loss {loss:.3f}, the lowest, at step {step_of(best)} of {last_step(rows)}"
    return Details(made, checkpoint=str(best))
