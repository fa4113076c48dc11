"""vLLM's chat API sees the trained prompt, token by token, and `route --chat` gets labels from it.

The model has gpt-oss's vocabulary and says what follows each token: after `<|start|>assistant` the header of the final
channel, then the label `Sales`, unless the server allows it another only.
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

from converters.toy_checkpoint import write_toy_checkpoint
from data_prep.harmony import RETURN, Prompt, chat_instruction, renderer, routing_prompt
from tests.conftest import nemo_run
from tests.serving.real_vllm import VOCABULARY, Served, require_vllm, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LABELS = ["Sales", "Billing"]
INSTRUCTION = f"Route the ticket. Answer with its queue, one of: {', '.join(LABELS)}."
SIZES = {
    "num_hidden_layers": 2, "num_local_experts": 4, "hidden_size": 64, "intermediate_size": 64, "head_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 201_088, "num_experts_per_tok": 2,
}  # fmt: skip
# openai/gpt-oss's special tokens from 199998 on; those without a name are reserved.
NAMED = {
    199998: "startoftext", 199999: "endoftext", 200002: "return", 200003: "constrain", 200005: "channel",
    200006: "start", 200007: "end", 200008: "message", 200012: "call", 200018: "endofprompt",
}  # fmt: skip
SPECIAL = [f"<|{NAMED.get(number, f'reserved_{number}')}|>" for number in range(199_998, 200_019)]
# The pattern by which o200k_base splits words (openai/tiktoken, o200k_base).
WORDS = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


@pytest.fixture(scope="module")
def encoding() -> Any:
    require_vllm()
    harmony = pytest.importorskip("openai_harmony")
    if not (VOCABULARY / "o200k_base.tiktoken").is_file():
        pytest.skip("../shared/data/tokenizer/o200k_base.tiktoken is not here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(VOCABULARY))
        return harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)


def tokens_of(encoding: Any, text: str) -> list[int]:
    return encoding.encode(text, allowed_special="all")


def write_speaker(folder: Path, encoding: Any) -> None:
    """A model whose layers add nothing, so that its output matrix says what follows each token."""
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
    embedding[known] = torch.eye(len(known), SIZES["hidden_size"])
    for way, strength in zip(ways, (3.0, 2.0), strict=True):
        for token, following in itertools.pairwise(way):
            output[following, known.index(token)] = strength
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))


def write_tokenizer(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    converter = TikTokenConverter(
        vocab_file=str(VOCABULARY / "o200k_base.tiktoken"), pattern=WORDS, additional_special_tokens=SPECIAL
    )
    ends = {"bos_token": SPECIAL[0], "eos_token": RETURN, "pad_token": SPECIAL[1]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=converter.converted(), **ends)
    assert tokenizer.convert_tokens_to_ids([RETURN, "<|message|>", "<|call|>"]) == [200_002, 200_008, 200_012]
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def served(encoding: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("speaker") / "model"
    write_speaker(folder, encoding)
    write_tokenizer(folder)
    with serving(folder, folder.with_name("serve.log"), "--context", "1024") as server:
        yield server


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return routing_prompt(renderer(), INSTRUCTION)


@pytest.mark.parametrize("ticket", ["My invoice\n\nis wrong <b>", "Größe 👍🏽 < |end|>"])
def test_the_chat_api_sees_the_trained_prompt(served: Served, encoding: Any, prompt: Prompt, ticket: str) -> None:
    messages = [{"role": "developer", "content": chat_instruction(prompt)}, {"role": "user", "content": ticket}]
    body = {"model": "tickets", "messages": messages, "reasoning_effort": "low"}
    answer = requests.post(f"{served.url}/v1/chat/completions/render", json=body, timeout=60).json()
    header = tokens_of(encoding, "<|channel|>final<|message|>")
    assert [*answer["token_ids"], *header] == tokens_of(encoding, prompt.fill(ticket))
    body = {"model": "tickets", "prompt": prompt.fill(ticket), "add_special_tokens": False}
    answer = requests.post(f"{served.url}/tokenize", json=body, timeout=60).json()
    assert answer["tokens"] == tokens_of(encoding, prompt.fill(ticket))


@pytest.mark.parametrize("options", [[], ["--chat"], ["--exact"]], ids=["prompt", "chat", "exact"])
def test_routing(served: Served, prompt: Prompt, tmp_path: Path, options: list[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    facts = {
        "labels": [{"label": label, "completion": label + RETURN} for label in LABELS],
        "prompt": {"before": prompt.before, "after": prompt.after, "end": RETURN},
    }
    (data / "labels.json").write_text(json.dumps(facts))
    (tmp_path / "tickets.csv").write_text("body\nMy invoice is wrong\nA quote, please\n")
    words = ["--endpoint", served.url, "--data", str(data), "--out", "routed.csv", *options]
    ran = nemo_run("route", "tickets.csv", *words, cwd=tmp_path)
    assert ran.status == 0, ran.err + served.said[-3000:]
    if "--exact" not in options:
        assert "constrained by structured_outputs" in ran.out
    with (tmp_path / "routed.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["routed_to"], row["problem"]) for row in rows] == [("Sales", "")] * 2
