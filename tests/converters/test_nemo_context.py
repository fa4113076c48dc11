"""The context that an import writes, as NeMo reads it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow  # imports NeMo


@pytest.fixture(scope="module", autouse=True)
def nemo() -> None:
    from modeling import cpu_backend

    cpu_backend.activate()


def test_load_context_gives_the_model_that_computes_what_transformers_computes(imported: Path) -> None:
    from nemo.collections.llm import GPTOSSConfig, GPTOSSModel
    from nemo.lightning.io import load_context

    from modeling.hf_config import GptOssConfig
    from modeling.model_config import _WITHOUT_GPU, nemo_config

    model = load_context(imported / "context", "model")
    assert isinstance(model, GPTOSSModel)
    config = GptOssConfig.from_file(imported / "context" / "hf_config.json")
    expected = nemo_config(config, seq_length=4096, dtype=torch.bfloat16)
    of_training = {*_WITHOUT_GPU, "generation_config", "calculate_per_token_loss"}
    for field in dataclasses.fields(GPTOSSConfig):
        if field.name not in of_training:
            found, wanted = getattr(model.config, field.name), getattr(expected, field.name)
            assert found == wanted or str(found) == str(wanted), field.name  # partial functions equal only themselves


def test_load_context_gives_the_tokenizer(imported: Path) -> None:
    from nemo.lightning.io import load_context

    tokenizer: Any = load_context(imported / "context", "model.tokenizer")
    assert tokenizer.text_to_ids("t7 t9") == [7, 9]
    assert tokenizer.vocab_size == 128


def test_load_context_gives_the_adapters_transform(imported: Path, tmp_path: Path) -> None:
    from nemo.lightning.io import load_context

    from modeling.expert_lora import GptOssLoRA
    from tests.converters.adapters import write_adapter

    adapter = write_adapter(tmp_path / "adapter", imported, expert_layers=[0, 2], router=True)
    lora = load_context(adapter / "context", "model.model_transform")
    assert isinstance(lora, GptOssLoRA)
    assert (lora.dim, lora.alpha, lora.expert_layers, lora.train_router) == (6, 12.0, [0, 2], True)
    assert lora.target_modules == ["linear_qkv", "linear_proj", "experts.linear_fc1", "experts.linear_fc2"]
