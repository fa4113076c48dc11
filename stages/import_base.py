"""The stage `import`: the base from Hugging Face as a NeMo checkpoint."""

from __future__ import annotations

from common.values import size_of
from converters.import_hf import has_mxfp4, import_checkpoint, is_imported
from pipeline.run_folder import RunFolder
from pipeline.stage import Details
from recipes.schema.recipe import packs_experts


def import_weights(run: RunFolder) -> Details:
    """Convert the base, piece by piece."""
    packs = packs_experts(run.recipe, has_mxfp4(run.hf))
    if run.recipe.model.experts == "auto" and is_imported(run.hf, run.base):
        packs = False  # with bf16 experts by another recipe: they serve as well
    import_checkpoint(run.hf, run.base, experts="mxfp4" if packs else "bf16")
    return Details(f"NeMo checkpoint, {size_of(run.base)}")
