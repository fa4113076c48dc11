"""Names of files and folders in a NeMo checkpoint, and what is read from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.errors import CheckpointError
from common.foreign import file_in, read_json
from converters.output_folder import source_files
from modeling.hf_config import GptOssConfig

WEIGHTS = "weights"
"""torch.distributed.checkpoint's folder; every NeMo checkpoint has one."""
CONFIG = "hf_config.json"
"""Below `context/`: the model's own config.json."""
TOKENIZER = "nemo_tokenizer"
"""Folder below `context/`, by NeMo's own name for it."""
SCALES_FILE = "mxfp4_scales.safetensors"
"""Beside the weights: MXFP4's scales as they were, which make the way back exact."""
METADATA = "adapter_metadata.json"
"""Below `weights/` of a NeMo adapter: names the model that it was trained on."""


def is_nemo(folder: Path) -> bool:
    """Whether a folder is a NeMo checkpoint, of a model or of an adapter."""
    return (folder / WEIGHTS).is_dir()


def config_file_of(import_: Path, remedy: str) -> Path:
    """The config.json of an imported model; `remedy` ends the sentence where there is none.

    Raises:
        CheckpointError: the folder holds none.
    """
    file = file_in(import_ / "context", CONFIG)
    if not file.is_file():
        raise CheckpointError(f"{import_} holds no context/{CONFIG}: {remedy}.")
    return file


def config_of(import_: Path, remedy: str) -> GptOssConfig:
    """The shapes of an imported model, from its config.json.

    Raises:
        CheckpointError: the folder holds none. ConfigurationError: it describes no gpt-oss.
    """
    return GptOssConfig.from_file(config_file_of(import_, remedy))


def checkpoint_identity(nemo: Path) -> dict[str, Any]:
    """Hashes, sizes and times of a NeMo checkpoint's files, for fingerprints."""
    files = sorted((nemo / WEIGHTS).iterdir())
    return {f"{nemo}/{name}": value for name, value in source_files([*files, nemo / "context" / "io.json"]).items()}


def trained_on(adapter: Path) -> Path:
    """The checkpoint that an adapter was trained on, as NeMo noted it.

    Raises:
        CheckpointError: its note is missing.
    """
    file = adapter / WEIGHTS / METADATA
    try:
        return Path(read_json(adapter / WEIGHTS, METADATA)["model_ckpt_path"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{file} is missing or damaged: name an adapter checkpoint.") from None
