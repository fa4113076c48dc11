"""The rehearsal's export served by the real vLLM, through `nemo-run serve`, against transformers in this process."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
import torch

from data_prep.prepared import load_prepared, load_routing
from evaluation.scoring import decode_labels
from evaluation.served_model import decode_by
from evaluation.transformers_model import load
from serving.endpoint import Endpoint
from tests.conftest import REPOSITORY, free_port, nemo_run
from tests.serving.real_vllm import Served, require_vllm

pytestmark = [pytest.mark.slow, pytest.mark.foreign, pytest.mark.timeout(1500)]
PORT = free_port()


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest) -> Path:
    require_vllm()
    return request.getfixturevalue("rehearsal").run


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("vllm") / "serve.log"
    with Served(run, PORT, log, "--context", "8192") as server:
        yield server


def random_tokens(count: int, vocabulary: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(vocabulary - 100) for _ in range(count)]


def test_log_probabilities_are_those_of_transformers(
    served: Served, run: Path, record_property: Callable[[str, object], None]
) -> None:
    """Past the window of full-attention's neighbours, and past the 4,096 positions that YaRN starts from."""
    logits, tokenizer = load(run / "exported")
    config = json.loads((run / "exported" / "config.json").read_text())
    tickets = load_prepared(run / "data").test[:3]
    prompts = [tokenizer.encode(ticket.input + ticket.output, add_special_tokens=False) for ticket in tickets]
    prompts += [random_tokens(count, config["vocab_size"], count) for count in (4 * config["sliding_window"], 5000)]
    assert max(map(len, prompts[:3])) > config["sliding_window"]
    largest = []
    for prompt in prompts:
        body = {"model": "tickets", "prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
        answer = requests.post(f"{served.url}/v1/completions", json=body, timeout=300).json()
        found = torch.tensor(answer["choices"][0]["logprobs"]["token_logprobs"][1 : len(prompt)])
        expected = torch.log_softmax(logits(torch.tensor([prompt]))[0, :-1].float(), dim=-1)
        expected = expected.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        largest.append(float((found - expected).abs().max()))
    record_property("log-probabilities", f"fp32: {max(largest):.1e}")
    assert max(largest) <= 5e-5


def test_scores_are_those_of_this_process(served: Served, run: Path) -> None:
    logits, tokenizer = load(run / "exported")
    prepared = load_prepared(run / "data")
    prompts, completions = [ticket.input for ticket in prepared.test[:40]], list(prepared.completions.values())
    expected = decode_labels(logits, tokenizer, prompts, completions, batch_size=8)
    with Endpoint(served.url) as endpoint:
        found = decode_by(endpoint, tokenizer, prompts, completions)
        answers = [tokenizer.encode(completion, add_special_tokens=False) for completion in completions]
        echoed = endpoint._score_by_echo(tokenizer.encode(prompts[0], add_special_tokens=False), answers)[0]
        assert endpoint._chosen_tokens
    assert found.best.tolist() == expected.best.tolist()
    assert found.greedy.tolist() == expected.greedy.tolist()
    np.testing.assert_allclose(found.log_probabilities, expected.log_probabilities, atol=1e-4)
    np.testing.assert_allclose(found.log_probabilities[0], echoed, atol=1e-5)


def test_the_server_sees_no_field_that_it_does_not_know(served: Served, run: Path) -> None:
    with Endpoint(served.url) as endpoint:
        ticket = load_prepared(run / "data").test[0]
        assert endpoint.constraint(ticket.input) == "structured_outputs"
        assert len(endpoint.tokenize(ticket.input)) > 20
        assert len(endpoint.fingerprint(ticket.input)) >= 5
    assert "fields were present in the request but ignored" not in served.said


def table(folder: Path, rows: int, seed: int) -> Path:
    """Tickets of the sample's kind, each with a number."""
    draw = random.Random(seed)
    words = ["printer", "invoice", "refund", "vpn", "login", "broken", "payment", "server", "order", "password"]
    with (folder / "tickets.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "subject", "body"])
        writer.writerows([i, f"Ticket {i}", " ".join(draw.choices(words, k=12))] for i in range(rows))
    return folder / "tickets.csv"


def routing(url: str, run: Path, tickets: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    words = ["route", str(tickets), "--endpoint", url, "--data", str(run / "data"), "--out", str(out), *options]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "launch.cli", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_two_clients_at_once_get_the_same_labels(served: Served, run: Path, tmp_path: Path) -> None:
    tickets = table(tmp_path, 120, seed=1)
    ways: list[list[str]] = [[], ["--exact"]]
    clients = [routing(served.url, run, tickets, tmp_path / f"{i}.csv", *way) for i, way in enumerate(ways)]
    said = [client.communicate(timeout=300)[0] for client in clients]
    assert [client.returncode for client in clients] == [0, 0], said
    assert f"asked tickets at {served.url}/v1, constrained by structured_outputs" in said[0]
    assert f"asked tickets at {served.url}/v1, by the scores of all labels" in said[1]
    greedy, exact = (rows_of(tmp_path / f"{i}.csv") for i in range(2))
    assert [row["id"] for row in greedy] == [row["id"] for row in exact] == [str(i) for i in range(120)]
    assert {row["routed_to"] for row in greedy} <= set(load_routing(run / "data").labels)
    assert sum(a["routed_to"] != b["routed_to"] for a, b in zip(greedy, exact, strict=True)) <= 6  # near ties


def test_a_killed_server_and_client_lose_no_row(served: Served, run: Path, tmp_path: Path) -> None:
    """It ends the server that the tests before used, and starts another at the same port."""
    tickets, out = table(tmp_path, 1500, seed=2), tmp_path / "routed.csv"
    partial = tmp_path / "routed.csv.partial"
    client = routing(served.url, run, tickets, out)
    end = time.monotonic() + 200
    while not partial.is_file() or partial.read_bytes().count(b"\n") < 100:
        assert time.monotonic() < end
        assert client.poll() is None, client.communicate()[0]
        time.sleep(0.05)
    served.kill()
    client.send_signal(signal.SIGKILL)
    client.communicate()
    kept = partial.read_bytes().count(b"\n") - 1
    assert 99 <= kept < 1500
    stopped = nemo_run("route", tickets, "--endpoint", served.url, "--data", run / "data", "--out", out, cwd=tmp_path)
    assert stopped.status == 1
    assert "cannot be reached (Connection refused)" in stopped.err
    with Served(run, PORT, tmp_path / "again.log", "--context", "8192"):
        again = nemo_run("route", tickets, "--endpoint", served.url, "--data", run / "data", "--out", out, cwd=tmp_path)
    assert again.status == 0, again.err
    assert f"{kept:,} of them were routed before" in again.out
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [str(i) for i in range(1500)]
    assert all(row["routed_to"] for row in rows)


def test_bf16_gives_the_same_labels(run: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """By a server of its own, after the end of the other; what differs are near ties."""
    exported, log = tmp_path / "exported", tmp_path / "serve.log"
    ran = nemo_run("convert", "export", run, exported, "--weights", "bf16", cwd=tmp_path)
    assert ran.status == 0, ran.err
    logits, tokenizer = load(exported)
    prepared = load_prepared(run / "data")
    prompts, completions = [ticket.input for ticket in prepared.test[:40]], list(prepared.completions.values())
    expected = decode_labels(logits, tokenizer, prompts, completions, batch_size=8)
    with Served(exported, free_port(), log) as server, Endpoint(server.url) as endpoint:
        found = decode_by(endpoint, tokenizer, prompts, completions)
    assert "dtype=torch.bfloat16" in server.said
    same = int((found.best == expected.best).sum())
    record_property("labels", f"bf16: {same} of {len(prompts)}")
    behind = expected.log_probabilities.max(axis=1) - expected.log_probabilities[np.arange(len(prompts)), found.best]
    assert behind.max() <= 0.1
    assert same >= 36
