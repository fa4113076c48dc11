"""A real HTTP server that speaks the part of vLLM's completions API that the package uses, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch

from evaluation.transformers_model import load


@dataclass
class StandIn:
    """The server's model and manners.

    Attributes:
        failures: requests that are answered with 503 before the first good answer.
        echoes: whether it gives log-probabilities of prompts, as vLLM does.
        constrains: whether it knows structured output.
        key: what a client must bring.
        refuses: text in a prompt that is answered with 400.
    """

    folder: Path
    failures: int = 0
    echoes: bool = True
    constrains: bool = True
    key: str | None = None
    refuses: str | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)
    url: str = ""

    def __post_init__(self) -> None:
        self.logits, self.tokenizer = load(self.folder)

    def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        """What the model answers."""
        prompts = body["prompt"]
        if isinstance(prompts, str):
            prompts = [self.tokenizer.encode(prompts, add_special_tokens=False)]
        elif isinstance(prompts[0], int):
            prompts = [prompts]
        if body.get("echo"):
            if not self.echoes:
                raise ValueError("echo is not supported")
            answered = [{"text": "", "logprobs": self._prompt_logprobs(prompt)} for prompt in prompts]
        else:
            choices = body.get("structured_outputs", {}).get("choice") if self.constrains else None
            answered = [self._generate(prompt, choices, body["max_tokens"]) for prompt in prompts]
        # a server may answer in any order: the index tells
        return {"choices": [{"index": i, **choice} for i, choice in enumerate(answered)][::-1]}

    def _prompt_logprobs(self, tokens: list[int]) -> dict[str, Any]:
        rows = torch.log_softmax(self.logits(torch.tensor([tokens]))[0].double(), dim=-1)
        own: list[Any] = [None]
        top: list[Any] = [None]
        for row, token in zip(rows[:-1], tokens[1:], strict=True):
            best = int(row.argmax())
            own.append(float(row[token]))
            top.append({f"t{token}": float(row[token]), f"t{best}": float(row[best])})
        return {"token_logprobs": own, "top_logprobs": top}

    def _generate(self, prompt: list[int], choices: list[str] | None, most: int) -> dict[str, Any]:
        """Greedy; with choices, only tokens that lead to one of them and its end."""
        end = self.tokenizer.eos_token_id
        wanted = [[*self.tokenizer.encode(text, add_special_tokens=False), end] for text in choices or []]
        answer: list[int] = []
        logprobs = []
        while len(answer) < most:
            row = torch.log_softmax(self.logits(torch.tensor([[*prompt, *answer]]))[0, -1].double(), dim=-1)
            allowed = {path[len(answer)] for path in wanted if path[: len(answer)] == answer}
            token = max(allowed, key=lambda one: float(row[one])) if wanted else int(row.argmax())
            logprobs.append(float(row[token]))
            if token == end:
                break
            answer.append(token)
        return {"text": self.tokenizer.decode(answer), "logprobs": {"token_logprobs": logprobs}}


@contextmanager
def serving(model: StandIn) -> Iterator[StandIn]:
    """The server on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": model.folder.name}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with model.lock:  # one at a time: the models are small and the cores few
                model.requests.append(body)
                if model.key and self.headers["Authorization"] != f"Bearer {model.key}":
                    self._send(401, {"error": "no key"})
                elif model.failures > 0:
                    model.failures -= 1
                    self._send(503, {"error": "loading"})
                elif model.refuses and model.refuses in str(body["prompt"]):
                    self._send(400, {"error": "the prompt is too long"})
                else:
                    try:
                        self._send(200, model.completions(body))
                    except ValueError as error:
                        self._send(400, {"error": str(error)})

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    model.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield model
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
