"""Entries that hold nothing and that NeMo's restore demands; and what is said where they are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.errors import CheckpointError
from converters import megatron_output
from converters.extra_states import check_states, empty_states
from converters.import_hf import import_checkpoint
from converters.storage.weights_reader import WeightsReader
from modeling.hf_config import GptOssConfig
from tests.converters.conftest import write_model


def test_every_module_of_transformer_engine_has_one(tmp_path: Path) -> None:
    """Those of both kinds of RMSNorm were missing."""
    hf = write_model(tmp_path / "hf", weights="bf16")
    config = GptOssConfig.from_file(hf)
    nemo = import_checkpoint(hf, tmp_path / "nemo")
    layers, experts = config.num_layers, config.num_experts
    expected = empty_states(config)
    assert len(expected) == len(set(expected)) == layers * (4 + 2 * experts) + 1
    assert f"module.decoder.layers.pre_mlp_layernorm._extra_state/shard_0_{layers}" in expected
    assert "module.decoder.final_layernorm._extra_state/shard_0_1" in expected
    assert set(expected) <= set(WeightsReader(nemo / "weights").metadata.state_dict_metadata)
    check_states(nemo / "weights", config)


def test_an_older_import_is_refused_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = write_model(tmp_path / "hf", weights="bf16")
    config = GptOssConfig.from_file(hf)

    def without_norms(of: GptOssConfig, *, packed: bool, prefix: str) -> list[str]:
        return [key for key in empty_states(of, packed=packed, prefix=prefix) if "norm" not in key]

    monkeypatch.setattr(megatron_output, "empty_states", without_norms)
    nemo = import_checkpoint(hf, tmp_path / "nemo")
    with pytest.raises(CheckpointError, match=rf"lacks {config.num_layers + 1} entries .* delete .*nemo and make it"):
        check_states(nemo / "weights", config)


def test_a_checkpoint_of_another_model_is_an_error_of_ours(tmp_path: Path) -> None:
    """torch's CheckpointException is no Exception: it went past every handler."""
    from modeling import inference
    from tests.converters.conftest import SIZES

    nemo = import_checkpoint(write_model(tmp_path / "hf", weights="bf16"), tmp_path / "nemo")
    other = GptOssConfig.from_file(write_model(tmp_path / "other", {**SIZES, "num_hidden_layers": 5}, weights="bf16"))
    inference.initialize()
    try:
        model = inference.build_model(other, seq_length=32, dtype=torch.float32)
        with pytest.raises(CheckpointError, match="does not hold this model"):
            inference.load_weights(model, nemo)
    finally:
        inference.shutdown()
