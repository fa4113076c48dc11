"""Where a Megatron checkpoint keeps its parts: NeMo's folder or Megatron-Bridge's, told apart by what lies in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import CheckpointError
from common.foreign import file_in, read_json
from converters import bridge_folder
from converters.bridge_config import hf_config_of, read_run_config
from converters.output_folder import source_files
from converters.storage.nemo_weights import PREFIX
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


@dataclass(frozen=True)
class MegatronFolder:
    """The parts of one checkpoint.

    Attributes:
        weights: torch.distributed.checkpoint's folder.
        prefix: of the model's keys in it.
        settings: what its program builds the model and an adapter from.
        config_file: the model's own config.json, which only this package's writing leaves there.
        tokenizer: folder of the tokenizer.
        beside: folder of generation_config.json and the licences.
    """

    bridge: bool
    weights: Path
    prefix: str
    settings: Path
    config_file: Path
    tokenizer: Path
    beside: Path
    scales: Path

    @classmethod
    def of_nemo(cls, root: Path) -> MegatronFolder:
        context = root / "context"
        settings, config, scales = context / "model.yaml", context / CONFIG, root / SCALES_FILE
        return cls(False, root / WEIGHTS, PREFIX, settings, config, context / TOKENIZER, context, scales)

    @classmethod
    def of_bridge(cls, iteration: Path) -> MegatronFolder:
        hf = iteration / bridge_folder.HF
        settings, config, tokenizer = iteration / bridge_folder.RUN_CONFIG, hf / "config.json", iteration / "tokenizer"
        return cls(True, iteration, "", settings, config, tokenizer, hf, hf / SCALES_FILE)

    @classmethod
    def find(cls, checkpoint: Path) -> MegatronFolder:
        """The parts of a checkpoint that is there.

        Raises:
            CheckpointError: a root of Megatron-Bridge does not say which iteration is its latest.
        """
        if is_nemo(checkpoint) or not bridge_folder.is_bridge(checkpoint):
            return cls.of_nemo(checkpoint)
        return cls.of_bridge(bridge_folder.iteration_of(checkpoint))

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The model's config.json, of Megatron-Bridge by its run config where there is none; None where nothing is.

        Raises:
            CheckpointError: the run config is damaged, or describes no gpt-oss.
        """
        if file_in(self.config_file.parent, self.config_file.name).is_file():
            return GptOssConfig.from_file(self.config_file).raw
        return hf_config_of(self.settings) if self.bridge and self.settings.is_file() else None


def is_nemo(folder: Path) -> bool:
    """Whether a folder is a NeMo checkpoint, of a model or of an adapter."""
    return (folder / WEIGHTS).is_dir()


def is_megatron(folder: Path) -> bool:
    """Whether a folder is a checkpoint of NeMo or of Megatron-Bridge."""
    return is_nemo(folder) or bridge_folder.is_bridge(folder)


def config_file_of(import_: Path, remedy: str) -> Path:
    """The config.json of an imported model; `remedy` ends the sentence where there is none.

    Raises:
        CheckpointError: the folder holds none.
    """
    folder = MegatronFolder.find(import_)
    file = file_in(folder.config_file.parent, folder.config_file.name)
    if not file.is_file():
        raise CheckpointError(f"{import_} holds no context/{CONFIG}: {remedy}.")
    return file


def config_of(import_: Path, remedy: str) -> GptOssConfig:
    """The shapes of an imported model, from its config.json, or from Megatron-Bridge's run config.

    Raises:
        CheckpointError: the folder holds neither. ConfigurationError: it describes no gpt-oss.
    """
    folder = MegatronFolder.find(import_)
    if folder.bridge and folder.config is not None:
        return GptOssConfig.from_dict(folder.config, str(folder.settings))
    return GptOssConfig.from_file(config_file_of(import_, remedy))


def checkpoint_identity(checkpoint: Path) -> dict[str, Any]:
    """Hashes, sizes and times of a checkpoint's files, for fingerprints."""
    folder = MegatronFolder.find(checkpoint)
    files = sorted(file for file in folder.weights.iterdir() if not file.is_dir())  # an iteration has hf/, tokenizer/
    if not folder.bridge:
        files.append(folder.beside / "io.json")
    return {f"{checkpoint}/{name}": value for name, value in source_files(files).items()}


def trained_on(adapter: Path) -> Path:
    """The checkpoint that an adapter was trained on, as NeMo or Megatron-Bridge noted it.

    Raises:
        CheckpointError: the note is missing.
    """
    folder = MegatronFolder.find(adapter)
    file = folder.settings if folder.bridge else folder.weights / METADATA
    try:
        note = read_run_config(file)["checkpoint"] if folder.bridge else read_json(folder.weights, METADATA)
        return Path(note["pretrained_checkpoint" if folder.bridge else "model_ckpt_path"])
    except (OSError, ValueError, KeyError, TypeError):
        what = "names no pretrained_checkpoint" if folder.bridge else "is missing or damaged"
        raise CheckpointError(f"{file} {what}: name an adapter checkpoint.") from None
