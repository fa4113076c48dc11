"""Our exports by llama.cpp, with the commands of docs/serving.md: its converter, its server, against transformers.

The model is random and has gpt-oss's vocabulary, by which llama.cpp's converter knows the tokenizer.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from benchmarks.gpt_oss_tokenizer import write_gpt_oss_tokenizer
from converters.toy_checkpoint import write_toy_checkpoint
from evaluation.transformers_model import load
from tests.conftest import REPOSITORY, free_port, nemo_run
from tests.real_tickets import real_vocabulary
from tests.serving.harmony_data import LABELS, PROMPT, write_labels

pytestmark = [pytest.mark.slow, pytest.mark.foreign, pytest.mark.timeout(1800)]
LLAMA = REPOSITORY / ".llama-cpp"
SIZES = {
    "num_hidden_layers": 4, "num_local_experts": 8, "hidden_size": 64, "intermediate_size": 64, "head_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 201_088, "num_experts_per_tok": 2,
    "sliding_window": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random MXFP4 model, imported as any."""
    if not (LLAMA / "build" / "bin" / "llama-server").is_file():
        pytest.skip("llama.cpp is not there: make llama-env builds it, in a quarter of an hour")
    vocabulary, folder = real_vocabulary(), tmp_path_factory.mktemp("llama")
    write_toy_checkpoint(folder / "hf", config=SIZES, std=0.1)
    write_gpt_oss_tokenizer(vocabulary, folder / "hf")
    ran = nemo_run("convert", "import", "hf", "nemo", cwd=folder)
    assert ran.status == 0, ran.err
    return folder / "nemo"


def with_rounded_yarn(export: Path) -> Path:
    """The export as llama.cpp computes it: where YaRN begins and ends is rounded to whole dimensions.

    `ggml_rope_yarn_corr_dims` always does; gpt-oss's config.json says `"truncate": false`, which transformers obeys.
    """
    rounded = export.with_name(f"{export.name}-rounded")
    shutil.copytree(export, rounded)
    config = json.loads((rounded / "config.json").read_text())
    config["rope_scaling"]["truncate"] = True
    (rounded / "config.json").write_text(json.dumps(config))
    return rounded


@dataclass
class Served:
    """An export, and the server of what llama.cpp's converter made of it."""

    export: Path
    url: str


@pytest.fixture(scope="module", params=["fp32", "mxfp4"])
def served(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[Served]:
    weights, folder = request.param, checkpoint.parent
    ran = nemo_run("convert", "export", "nemo", weights, "--weights", weights, cwd=folder)
    assert ran.status == 0, ran.err
    file, port = folder / f"{weights}.gguf", free_port()
    convert = [sys.executable, str(LLAMA / "source" / "convert_hf_to_gguf.py"), weights, "--outfile", str(file)]
    kind = {"fp32": "f32", "mxfp4": "auto"}[weights]
    subprocess.run([*convert, "--outtype", kind], cwd=folder, check=True, timeout=900)
    command = [str(LLAMA / "build" / "bin" / "llama-server"), "-m", str(file), "--host", "127.0.0.1", "-c", "8192"]
    command += ["--port", str(port), "-np", "4", "-t", "2", "--alias", "tickets"]
    command += ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]  # the cache in fp32, to compare numbers
    with file.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait(f"http://127.0.0.1:{port}/health", process)
        yield Served(folder / weights, f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> tuple[Any, Any]:
    """The model in transformers, fp32: MXFP4 decodes to the same values."""
    folder = checkpoint.parent
    ran = nemo_run("convert", "export", "nemo", "reference", "--weights", "fp32", cwd=folder)
    assert ran.status == 0, ran.err
    return load(with_rounded_yarn(folder / "reference"))


def wait(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < end:
        try:
            if requests.get(url, timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.5)
    raise AssertionError("llama-server did not begin to serve")


def test_the_likeliest_token_is_that_of_transformers(
    served: Served, reference: tuple[Any, Any], record_property: Callable[[str, object], None]
) -> None:
    logits, tokenizer = reference
    texts = ["My invoice is wrong", "Größe 👍🏽 日本語", "A quote, please " * 20, "no network " * 200]
    prompts = [tokenizer.encode(PROMPT.fill(text), add_special_tokens=False) for text in texts]
    draw = random.Random(0)
    prompts += [[draw.randrange(199_000) for _ in range(count)] for count in (8, 40, 200, 700, 1500)]
    same, largest, behind = 0, 0.0, 0.0
    for tokens in prompts:
        body = {"prompt": tokens, "n_predict": 1, "temperature": 0, "n_probs": 5, "cache_prompt": False}
        answer = requests.post(f"{served.url}/completion", json=body, timeout=300).json()
        top = answer["completion_probabilities"][0]["top_logprobs"]
        expected = torch.log_softmax(logits(torch.tensor([tokens]))[0, -1].float(), dim=-1)
        largest = max(largest, *(abs(each["logprob"] - float(expected[each["id"]])) for each in top))
        same += top[0]["id"] == int(expected.argmax())
        behind = max(behind, float(expected.max() - expected[top[0]["id"]]))
    weights = served.export.name
    record_property("tokens", f"{weights}: {same} of {len(prompts)}, log-probabilities {largest:.1e}")
    # fp32 differs in the order of sums; beside MXFP4 weights llama.cpp rounds activations to 8 bits (Q8_0)
    rounding = {"fp32": 1e-4, "mxfp4": 0.3}[weights]
    assert largest < rounding
    assert behind < rounding


def test_route(served: Served, tmp_path: Path) -> None:
    """llama.cpp obeys a grammar, and tokenizes the prompt as we do."""
    _, tokenizer = load(served.export)
    body = {"content": PROMPT.fill("Größe 👍🏽 < |end|>"), "add_special": False, "parse_special": True}
    tokens = requests.post(f"{served.url}/tokenize", json=body, timeout=60).json()["tokens"]
    assert tokens == tokenizer.encode(body["content"], add_special_tokens=False)
    write_labels(tmp_path / "data")
    (tmp_path / "tickets.csv").write_text("body\n" + "".join(f"ticket {i}\n" for i in range(12)))
    words = ["--endpoint", served.url, "--data", "data", "--out", "routed.csv"]
    ran = nemo_run("route", "tickets.csv", *words, cwd=tmp_path)
    assert ran.status == 0, ran.err
    assert "constrained by grammar" in ran.out
    with (tmp_path / "routed.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["body"] for row in rows] == [f"ticket {i}" for i in range(12)]
    assert {row["routed_to"] for row in rows} <= set(LABELS)
    assert {row["problem"] for row in rows} == {""}
