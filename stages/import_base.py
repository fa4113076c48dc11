"""The stage `import`: the base from Hugging Face as a NeMo checkpoint."""

from __future__ import annotations

from common.values import size_of
from converters.import_hf import import_checkpoint
from pipeline.run_folder import RunFolder
from pipeline.stage import Details


def import_weights(run: RunFolder) -> Details:
    """Convert the base, piece by piece."""
    import_checkpoint(run.hf, run.base)
    return Details(f"NeMo checkpoint, {size_of(run.base)}")
