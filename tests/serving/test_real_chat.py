"""vLLM's chat API sees the trained prompt, token by token, and `route --chat` gets labels from it.

The model has gpt-oss's vocabulary and says what follows each token: after `<|start|>assistant` the header of the final
channel, then the label `Sales`, unless the server allows it another only, and after what it does not know the end.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from safetensors.torch import load_file, save_file

from benchmarks.gpt_oss_tokenizer import write_gpt_oss_tokenizer
from converters.toy_checkpoint import write_toy_checkpoint
from data_prep.harmony import RETURN, chat_instruction
from tests.conftest import free_port, nemo_run
from tests.real_tickets import real_vocabulary
from tests.serving.harmony_data import LABELS, PROMPT, write_labels
from tests.serving.real_vllm import Served, require_vllm

pytestmark = [pytest.mark.slow, pytest.mark.foreign, pytest.mark.timeout(900)]
SIZES = {
    "num_hidden_layers": 2, "num_local_experts": 4, "hidden_size": 64, "intermediate_size": 64, "head_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 201_088, "num_experts_per_tok": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def encoding() -> Any:
    require_vllm()
    harmony = pytest.importorskip("openai_harmony")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(real_vocabulary().parent))
        return harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)


def tokens_of(encoding: Any, text: str) -> list[int]:
    return encoding.encode(text, allowed_special="all")


def write_speaker(folder: Path, encoding: Any) -> None:
    """A model whose layers add nothing, so that its output matrix says what follows each token.

    What it does not know ends the answer: vLLM's grammar for chats lets `<|end|>` be spelled in letters, too, and a
    model that finds all tokens alike would spell it.
    """
    write_toy_checkpoint(folder, config=SIZES, weights="bf16")
    file = next(folder.glob("*.safetensors"))
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    for name, tensor in tensors.items():
        if "o_proj" in name or "down_proj" in name:
            tensor.zero_()
        elif "norm" in name:
            tensor.fill_(1)
    ways = [tokens_of(encoding, f"assistant<|channel|>final<|message|>{label}{RETURN}") for label in LABELS]
    known = sorted({token for way in ways for token in way})
    embedding, output = (tensors[name].zero_() for name in ("model.embed_tokens.weight", "lm_head.weight"))
    embedding[:, -1] = 1.0
    embedding[known] = torch.eye(len(known), SIZES["hidden_size"])
    output[ways[0][-1], -1] = 1.0
    for way, strength in zip(ways, (3.0, 2.0), strict=True):
        for token, following in itertools.pairwise(way):
            output[following, known.index(token)] = strength
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))


@pytest.fixture(scope="module")
def served(encoding: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("speaker") / "model"
    write_speaker(folder, encoding)
    write_gpt_oss_tokenizer(real_vocabulary(), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(real_vocabulary().parent))  # by which vLLM renders chats
        server = Served(folder, free_port(), folder.with_name("serve.log"), "--context", "1024")
    with server:
        yield server


@pytest.mark.parametrize("ticket", ["My invoice\n\nis wrong <b>", "Größe 👍🏽 < |end|>"])
def test_the_chat_api_sees_the_trained_prompt(served: Served, encoding: Any, ticket: str) -> None:
    messages = [{"role": "developer", "content": chat_instruction(PROMPT)}, {"role": "user", "content": ticket}]
    body = {"model": "tickets", "messages": messages, "reasoning_effort": "low", "return_token_ids": True}
    answer = requests.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).json()
    header = tokens_of(encoding, "<|channel|>final<|message|>")
    assert [*answer["prompt_token_ids"], *header] == tokens_of(encoding, PROMPT.fill(ticket))
    body = {"model": "tickets", "prompt": PROMPT.fill(ticket), "add_special_tokens": False}
    answer = requests.post(f"{served.url}/tokenize", json=body, timeout=60).json()
    assert answer["tokens"] == tokens_of(encoding, PROMPT.fill(ticket))


@pytest.mark.parametrize("options", [[], ["--chat"], ["--exact"]], ids=["prompt", "chat", "exact"])
def test_routing(served: Served, tmp_path: Path, options: list[str]) -> None:
    write_labels(tmp_path / "data")
    (tmp_path / "tickets.csv").write_text("body\nMy invoice is wrong\nThe printer burns\n")
    words = ["--endpoint", served.url, "--data", "data", "--out", "routed.csv", *options]
    ran = nemo_run("route", "tickets.csv", *words, cwd=tmp_path)
    assert ran.status == 0, ran.err + served.said[-3000:]
    if "--exact" not in options:
        assert "constrained by structured_outputs" in ran.out
    with (tmp_path / "routed.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["routed_to"], row["problem"]) for row in rows] == [("Sales", "")] * 2
