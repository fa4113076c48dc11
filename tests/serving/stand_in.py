"""A real HTTP server that speaks the part of vLLM's completions API that the package uses, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
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
        chooses: whether it gives log-probabilities of chosen tokens, as newer vLLM does.
        constrains: whether it obeys the field `constraint`; others it ignores.
        key: what a client must bring.
        refuses: text in a prompt that is answered with 400.
    """

    folder: Path
    failures: int = 0
    echoes: bool = True
    chooses: bool = True
    constrains: bool = True
    constraint: str = "structured_outputs"
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
            choices = self._choices(body) if self.constrains else None
            chosen = body.get("logprob_token_ids", []) if self.chooses else []
            answered = [self._generate(prompt, choices, body["max_tokens"], chosen) for prompt in prompts]
        # a server may answer in any order: the index tells
        return {"choices": [{"index": i, **choice} for i, choice in enumerate(answered)][::-1]}

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tokens of a text."""
        return {"tokens": self.tokenizer.encode(body["prompt"], add_special_tokens=False)}

    def _choices(self, body: dict[str, Any]) -> list[str] | None:
        given = body.get(self.constraint)
        if isinstance(given, str):  # llama.cpp's grammar
            return [json.loads(label) for label in given.removeprefix("root ::= ").split(" | ")]
        return next(iter(given.values())) if isinstance(given, dict) else given

    def _prompt_logprobs(self, tokens: list[int]) -> dict[str, Any]:
        rows = torch.log_softmax(self.logits(torch.tensor([tokens]))[0].double(), dim=-1)
        own: list[Any] = [None]
        top: list[Any] = [None]
        for row, token in zip(rows[:-1], tokens[1:], strict=True):
            best = int(row.argmax())
            own.append(float(row[token]))
            top.append({f"t{token}": float(row[token]), f"t{best}": float(row[best])})
        return {"token_logprobs": own, "top_logprobs": top}

    def _generate(self, prompt: list[int], choices: list[str] | None, most: int, chosen: list[int]) -> dict[str, Any]:
        """Greedy; with choices, only tokens that lead to one of them and its end."""
        end = self.tokenizer.eos_token_id
        wanted = [[*self.tokenizer.encode(text, add_special_tokens=False), end] for text in choices or []]
        answer: list[int] = []
        logprobs, top, named = [], [], []
        while len(answer) < most:
            row = torch.log_softmax(self.logits(torch.tensor([[*prompt, *answer]]))[0, -1].double(), dim=-1)
            allowed = {path[len(answer)] for path in wanted if path[: len(answer)] == answer}
            token = max(allowed, key=lambda one: float(row[one])) if wanted else int(row.argmax())
            logprobs.append(float(row[token]))
            named.append(f"token_id:{token}")
            top.append({f"token_id:{one}": float(row[one]) for one in {token, *chosen}})
            if token == end:
                break
            answer.append(token)
        found = {"tokens": named, "token_logprobs": logprobs, "top_logprobs": top}
        return {"text": self.tokenizer.decode(answer), "logprobs": found}


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
                elif model.refuses and model.refuses in str(body["prompt"]) and not self.path.startswith("/tok"):
                    self._send(400, {"error": "the prompt is too long"})
                else:
                    try:
                        answer = model.tokenize if self.path.startswith("/tokenize") else model.completions
                        self._send(200, answer(body))
                    except ValueError as error:
                        self._send(400, {"error": str(error)})

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    with _running(Handler) as model.url:
        yield model


@contextmanager
def answering(answer: Callable[[str, Any], Any]) -> Iterator[str]:
    """A server that answers what `answer` makes of a path and a body: bytes as they are, anything else as JSON."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            said = answer(self.path, body)
            status, said = said if isinstance(said, tuple) else (200, said)
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    with _running(Handler) as url:
        yield url


@contextmanager
def _running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None: ...  # clients that went away

    server = Server(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
