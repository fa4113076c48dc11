"""A Hugging Face folder in transformers, fp32 on the CPU; MXFP4 weights are dequantized while they load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from common.errors import CheckpointError
from common.hf_tokenizer import open_tokenizer
from common.values import one_line
from evaluation.scoring import LogitsFunction
from modeling.hf_config import old_fields


def load(folder: Path) -> tuple[LogitsFunction, Any]:
    """The model's logits function and its tokenizer.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are not those of the model in config.json.
    """
    _ensure(folder, "config.json")
    tokenizer = load_tokenizer(folder)
    model = _model(folder)

    @torch.no_grad()
    def logits(tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        hidden = model.model(tokens, use_cache=False).last_hidden_state
        if positions is not None:
            hidden = hidden[torch.arange(len(tokens))[:, None], positions]
        return model.lm_head(hidden).float()

    return logits, tokenizer


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of an exported folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    _ensure(folder, "tokenizer.json")
    try:
        return open_tokenizer(str(folder))
    except Exception as error:  # tokenizers 0.22 raises a bare Exception for a damaged tokenizer.json
        raise CheckpointError(
            f"{folder}/tokenizer.json cannot be read ({one_line(error)}): export it again."
        ) from error


def _ensure(folder: Path, name: str) -> None:
    if not (folder / name).is_file():  # else transformers would look the name up on the Hub
        raise CheckpointError(f"{folder} holds no {name}: name a folder that nemo-run convert export wrote.")


def _model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=_config(folder),
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"transformers cannot load {folder} ({one_line(error)}): export it again.") from error
    model, report = loaded
    # transformers gives a weight that it does not find random values, and says so only in a warning
    if strays := sorted(report["missing_keys"]) + sorted(report["unexpected_keys"]):
        raise CheckpointError(
            f"{folder} has {len(report['missing_keys'])} weights too few and {len(report['unexpected_keys'])} too many "
            f"for its config.json, such as {strays[0]}: export it again."
        )
    return model.float().eval()  # transformers 4.57 leaves the experts of an MXFP4 folder in bf16, whatever dtype says


def _config(folder: Path) -> Any:
    """The configuration of a folder, in whose file transformers 4 would not see the RoPE that transformers 5 wrote."""
    import transformers

    if transformers.__version__.startswith("4."):
        raw, _ = transformers.PretrainedConfig.get_config_dict(folder)
        return transformers.AutoConfig.for_model(**old_fields(raw))
    return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
