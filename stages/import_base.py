"""The stage `import`: the base from Hugging Face as a NeMo checkpoint."""

from __future__ import annotations

from common.values import size_of
from converters.import_hf import has_mxfp4, import_checkpoint, is_imported
from pipeline.run_folder import RunFolder
from pipeline.stage import Details


def import_weights(run: RunFolder) -> Details:
    """Convert the base, piece by piece."""
    experts = run.recipe.model.experts
    if experts == "auto":
        packs = run.recipe.may_pack and not is_imported(run.hf, run.base) and has_mxfp4(run.hf)
        experts = "mxfp4" if packs else "bf16"
    import_checkpoint(run.hf, run.base, experts=experts)
    return Details(f"NeMo checkpoint, {size_of(run.base)}")
