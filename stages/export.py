"""The stage `export`: the tuned model as a Hugging Face folder."""

from __future__ import annotations

from common.values import size_of
from converters.export_hf import export_checkpoint
from evaluation.parity import parity_of
from pipeline.checkpoints import exported_parts
from pipeline.run_folder import RunFolder
from pipeline.stage import Details
from serving.usage import usage_of


def export_model(run: RunFolder) -> Details:
    """Merge the adapter, write full weights as safetensors, and compare its logits with the trained model's."""
    tuned, settings = exported_parts(run.path), run.recipe.export
    export_checkpoint(
        tuned.weights,
        run.exported,
        adapter=tuned.adapter,
        weights=settings.weights,
        shard_size=settings.shard_size,
        like=tuned.like,
        title=run.path.name,
        usage=usage_of(run.data),
    )
    made, logits = f"safetensors, {size_of(run.exported)}", run.evaluation / "logits.safetensors"
    if not logits.is_file():
        return Details(f"{made}; not compared with the model in training, which was not evaluated")
    parity = parity_of(run.exported, logits)
    return Details(
        f"{made}; largest logit difference to training {parity.largest:.1e}, "
        f"same likeliest token at {parity.likeliest} of {parity.positions} positions",
        largest_logit_difference=parity.largest,
    )
