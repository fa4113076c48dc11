"""A model behind an OpenAI-compatible server, as vLLM and NIM serve the export.

Scores are exact where the server gives log-probabilities of a prompt (`echo`, as vLLM does); elsewhere, and for
routing, the server constrains its answer to the labels (structured output).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from common.errors import LaunchError
from common.progress import Done, Progress, quiet
from common.values import one_line

KEY = "OPENAI_API_KEY"
AT_ONCE = 16
RETRIES = 6
SECONDS = 300
_BUSY = (408, 429, 500, 502, 503, 504)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Choice:
    """A constrained answer, and the log-probability of its tokens where the server says."""

    label: str
    log_probability: float | None


class RefusedError(LaunchError):
    """The server answered without the requested result; `of_prompt` is set where it rejected this prompt alone."""

    of_prompt = False


_OF_PROMPT = (400, 413, 422)


class Endpoint:
    """Completions of one server; a busy or restarting one is asked again, at growing intervals.

    The key is read from OPENAI_API_KEY where that is set.

    Args:
        url: with or without `/v1` at its end.
        backoff: seconds before the second retry, twice as long before each further one.
    """

    def __init__(self, url: str, backoff: float = 0.5) -> None:
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        asked_again: dict[str, Any] = {
            "total": RETRIES,
            "backoff_factor": backoff,
            "status_forcelist": _BUSY,
            "allowed_methods": ("GET", "POST"),
        }
        retry = Retry(**asked_again)
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=AT_ONCE))
        if KEY in os.environ:
            self._session.headers["Authorization"] = f"Bearer {os.environ[KEY]}"

    @cached_property
    def model(self) -> str:
        """Name of the first model that the server lists."""
        served = self._ask("GET", "models").get("data")
        if not served:
            raise RefusedError(f"{self.url}/models lists no model: start the server with the exported folder.")
        return str(served[0]["id"])

    def choose(self, prompt: str, labels: Sequence[str]) -> Choice:
        """The answer to a prompt, constrained to the labels.

        Raises:
            LaunchError: the server cannot be reached, refuses the request, or answers otherwise.
        """
        choice = self._complete(
            prompt,
            # no token is shorter than a byte
            max_tokens=max(len(label.encode()) for label in labels) + 1,
            structured_outputs={"choice": list(labels)},  # vLLM from 0.11 on
            guided_choice=list(labels),  # vLLM before 0.12
            nvext={"guided_choice": list(labels)},  # NIM
        )[0]
        label = choice["text"].strip()
        if label not in labels:
            raise RefusedError(
                f"{self.url} answered {label[:80]!r}, which is no label: its server constrains no answers."
            )
        tokens = (choice.get("logprobs") or {}).get("token_logprobs")
        return Choice(label, float(sum(tokens)) if tokens else None)

    def free_answer(self, prompt: str, most: int) -> str:
        """What the model answers without the constraint, in at most so many tokens."""
        return self._complete(prompt, max_tokens=most)[0]["text"].strip()

    def score(self, prompt: list[int], answers: Sequence[list[int]]) -> tuple[np.ndarray, int]:
        """Log-probabilities of all answers after a prompt, (answers,), and which is the greedy one, -1 for none.

        Raises:
            RefusedError: the server gives no log-probabilities of prompts.
        """
        given = self._complete([[*prompt, *answer] for answer in answers], max_tokens=0, echo=True)
        scores, greedy = np.zeros(len(answers)), -1
        for i, (choice, answer) in enumerate(zip(given, answers, strict=True)):
            logprobs = choice.get("logprobs") or {}
            tokens, best = logprobs.get("token_logprobs") or [], logprobs.get("top_logprobs") or []
            if len(tokens) != len(prompt) + len(answer) or len(best) != len(tokens):
                raise RefusedError(f"{self.url} gives no log-probabilities of prompts.")
            own = tokens[-len(answer) :]
            scores[i] = sum(own)
            if all(mine >= max(top.values()) for mine, top in zip(own, best[-len(answer) :], strict=True)):
                greedy = i
        return scores, greedy

    def _complete(self, prompt: Any, **settings: Any) -> list[dict[str, Any]]:
        """The choices of a completions request, in the order of the prompts."""
        fixed = {"model": self.model, "prompt": prompt, "temperature": 0, "logprobs": 1, "add_special_tokens": False}
        choices = self._ask("POST", "completions", fixed | settings).get("choices")
        if not choices:
            raise RefusedError(f"{self.url}/completions answers without choices: it is no OpenAI-compatible server.")
        return sorted(choices, key=lambda choice: choice.get("index", 0))

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        try:
            answer = self._session.request(method, f"{self.url}/{path}", json=body, timeout=SECONDS)
        except requests.RequestException as error:
            reason = type(error).__name__
            raise LaunchError(
                f"{self.url} cannot be reached ({reason}): is the server up, and the address right?"
            ) from None
        if answer.status_code in (401, 403):
            raise LaunchError(f"{self.url} refuses access: put its key into the environment variable {KEY}.")
        if not answer.ok:
            refused = RefusedError(f"{self.url}/{path} answers {answer.status_code}: {one_line(answer.text)}")
            refused.of_prompt = answer.status_code in _OF_PROMPT
            raise refused
        try:
            return answer.json()
        except ValueError:
            raise RefusedError(f"{self.url}/{path} answers no JSON: it is no OpenAI-compatible server.") from None


def at_once(
    ask: Callable[[Item], Result],
    items: Sequence[Item],
    progress: Progress = quiet,
) -> Iterator[Result]:
    """Call `ask` for several items at a time; yields the results in the order of the items, up to the first error."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for done, result in enumerate(pool.map(ask, items), 1):
            progress(Done("tickets", done, len(items)))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
