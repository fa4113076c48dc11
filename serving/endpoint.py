"""A model behind an OpenAI-compatible server: vLLM, NIM or llama.cpp, with the export or with an adapter on its base.

Answers are constrained to the labels in the way that the server obeys, which a probe finds out. Scores are exact where
the server gives log-probabilities of chosen tokens, or of a prompt's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from common.errors import ConfigurationError, LaunchError
from common.values import one_line
from data_prep.harmony import REASONING_EFFORT
from serving.address import parse_address
from serving.answers import Answer, Served, answers_of, models_of, tokens_of
from serving.connection import KEY, Connection, NoAnswerError, RefusedError
from serving.constraints import CONSTRAINTS, IMPOSSIBLE
from serving.label_tree import LabelTree, Stem, Step

__all__ = ["AT_ONCE", "KEY", "Choice", "Endpoint", "NoAnswerError", "NoLabelError", "RefusedError"]

AT_ONCE = 16
AHEAD = 4
"""Items that wait for each request under way, so that a slow one holds nobody up."""
SECONDS = 300
THINKING = 256
"""Tokens that a chat may take before its answer: headers, and the little that low effort thinks."""
Item = TypeVar("Item")
Result = TypeVar("Result")
Prompt = str | list[int] | list[dict[str, str]]
"""Text or tokens for the completions API, messages for the chat API."""


@dataclass(frozen=True)
class Choice:
    """An answer that is a label.

    Attributes:
        log_probability: of its tokens, where the server says.
        doubt: what the server says of it that cannot be.
    """

    label: str
    log_probability: float | None
    doubt: str = ""


class NoLabelError(LaunchError):
    """The server answered with something else than a label."""


class Endpoint:
    """One model of a server. May be used from any number of threads, and as a context that closes it.

    Args:
        url: as `serving.address.parse_address` reads it.
        backoff: seconds before a busy or restarting server is asked again, twice as long each further time.
        model: the name to ask for; by default the only one, or the only adapter.
        concurrency: requests at a time.
    """

    def __init__(self, url: str, backoff: float = 0.5, *, model: str | None = None, concurrency: int = AT_ONCE) -> None:
        if concurrency < 1:
            raise ConfigurationError(f"--concurrency is {concurrency}: at least one request goes at a time.")
        address = parse_address(url)
        self.url = address.url
        self.concurrency = concurrency
        self._wanted = model
        self._connection = Connection(address, SECONDS, backoff, concurrency)
        self._constraint: str | None = None
        self._probed = False
        self._probing = Lock()
        self._chosen_tokens: bool | None = None  # whether the server knows logprob_token_ids, once it was asked

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def model(self) -> str:
        """Name of the model that is asked."""
        return self.served.id

    @cached_property
    def served(self) -> Served:
        """The model that is asked.

        Raises:
            ConfigurationError: the server has several, or not the one that was named.
        """
        models = models_of(self._connection.ask("GET", "models"), f"{self.url}/models")
        if not models:
            raise RefusedError(f"{self.url}/models lists no model: start the server with the exported folder.")
        names = one_line(", ".join(model.id for model in models), 300)
        if self._wanted is not None:
            named = [model for model in models if model.id == self._wanted]
            if not named:
                raise ConfigurationError(f"{self.url} serves no model {self._wanted!r}: it serves {names}.")
            return named[0]
        adapters = [model for model in models if model.parent]
        if len(adapters) == 1:
            return adapters[0]
        if not adapters and len({(model.root or model.id) for model in models}) == 1:
            return models[0]  # one model under several names
        raise ConfigurationError(f"{self.url} serves several models: name one with --model, of {names}.")

    def constraint(self, prompt: Prompt) -> str | None:
        """The way of constraining answers that the server obeys, None for none; a prompt is probed with once.

        Raises:
            RefusedError: the server refuses the prompt without a constraint, too.
        """
        with self._probing:
            if not self._probed:
                self._constraint = next((name for name in CONSTRAINTS if self._obeys(name, prompt)), None)
                if self._constraint is None:
                    self._complete(prompt, max_tokens=1)  # refused for another reason: its words
                self._probed = True
        return self._constraint

    def _obeys(self, constraint: str, prompt: Prompt) -> bool:
        fields = CONSTRAINTS[constraint]([IMPOSSIBLE])
        try:
            most = len(IMPOSSIBLE) + 1 + (THINKING if _is_chat(prompt) else 0)
            return self._complete(prompt, max_tokens=most, **fields)[0].text.strip() == IMPOSSIBLE
        except RefusedError as refused:
            if not refused.of_request:
                raise
            return False

    def choose(self, prompt: Prompt, labels: Sequence[str]) -> Choice:
        """The answer to a prompt, constrained to the labels where the server obeys.

        Raises:
            NoLabelError: it is no label. NoAnswerError: there is none. RefusedError: the server refuses the request.
        """
        constraint = self.constraint(prompt)
        fields = CONSTRAINTS[constraint](labels) if constraint else {}
        # no token is shorter than a byte
        most = max(len(label.encode()) for label in labels) + 1 + (THINKING if _is_chat(prompt) else 0)
        answer = self._asked_twice(lambda: self._complete(prompt, max_tokens=most, **fields)[0])
        label = answer.text.strip()
        if label not in labels:
            why = "" if constraint else ": the server constrains no answers"
            raise NoLabelError(f"answered {one_line(repr(label), 80)}, which is no label{why}")
        try:
            tokens = [each for each in answer.log_probabilities if each is not None]
        except NoAnswerError as error:
            return Choice(label, None, str(error))
        # those of a chat have headers and reasoning among them
        return Choice(label, sum(tokens) if tokens and not _is_chat(prompt) else None)

    def free_answer(self, prompt: Prompt, most: int) -> str:
        """What the model answers without the constraint, in at most so many tokens."""
        return self._asked_twice(lambda: self._complete(prompt, max_tokens=most)[0].text.strip())

    def fingerprint(self, prompt: Prompt) -> list[float]:
        """Log-probabilities of the likeliest first tokens of an answer, falling: other weights, other numbers."""
        answer = self._complete(prompt, max_tokens=1, top=5)[0]
        try:
            top = answer.top[0].values() if answer.top else [x for x in answer.log_probabilities[:1] if x is not None]
        except NoAnswerError:
            return []
        return sorted(top, reverse=True)

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, as the server's model reads it.

        Raises:
            RefusedError: the server has no `/tokenize`, as vLLM does.
        """
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return tokens_of(self._connection.ask("POST", "/tokenize", body), f"{self.url}/tokenize")

    def score(self, prompt: list[int], answers: Sequence[list[int]]) -> tuple[np.ndarray, int]:
        """Log-probabilities of all answers after a prompt, (answers,), and which is the greedy one, -1 for none.

        Raises:
            RefusedError: the server gives log-probabilities neither of chosen tokens nor of prompts.
        """
        if self._chosen_tokens is not False:
            scored = self._asked_twice(lambda: self._score_by_tree(prompt, LabelTree(list(answers))))
            self._chosen_tokens = scored is not None
            if scored is not None:
                return scored
        return self._asked_twice(lambda: self._score_by_echo(prompt, answers))

    def _score_by_tree(self, prompt: list[int], tree: LabelTree) -> tuple[np.ndarray, int] | None:
        """One way after each head of the tree, and then one token after the stems where the model went elsewhere.

        The prompt is in the server's prefix cache after its first computation, which an echoed one never uses. None
        where the server does not know `logprob_token_ids`, as vLLM 0.32 does.
        """
        fields = {"logprob_token_ids": tree.tokens, "return_tokens_as_token_ids": True}
        steps: dict[Stem, Step] = {}
        for stems, most in ((tree.heads, tree.longest), (tree.stems, 1)):
            missing = [stem for stem in stems if stem not in steps]
            if not missing:
                continue
            try:
                answers = self._complete([[*prompt, *stem] for stem in missing], max_tokens=most, **fields)
            except RefusedError as refused:
                if not refused.of_request or self._chosen_tokens:
                    raise
                return None
            for stem, answer in zip(missing, answers, strict=True):
                for token, top in answer.steps_by_id():
                    if not top.keys() >= set(tree.tokens):
                        return None
                    steps[stem] = Step(token, top)
                    stem = (*stem, token)
                    if stem not in tree.stems:
                        break
        return tree.scores(steps) if steps.keys() >= set(tree.stems) else None

    def _score_by_echo(self, prompt: list[int], answers: Sequence[list[int]]) -> tuple[np.ndarray, int]:
        given = self._complete([[*prompt, *answer] for answer in answers], max_tokens=0, echo=True)
        scores, greedy = np.zeros(len(answers)), -1
        for i, (echoed, answer) in enumerate(zip(given, answers, strict=True)):
            tokens, best = echoed.log_probabilities, echoed.top
            own = [each for each in tokens[len(prompt) :] if each is not None]
            if len(tokens) != len(prompt) + len(answer) or len(best) != len(tokens) or len(own) != len(answer):
                raise RefusedError(f"{self.url} gives no log-probabilities of prompts.")
            scores[i] = sum(own)
            if all(mine >= max(top.values(), default=0) for mine, top in zip(own, best[len(prompt) :], strict=True)):
                greedy = i
        return scores, greedy

    def at_once(self, ask: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Call `ask` for several items at a time; yields the results in the order of the items, up to the first error.

        No more items are taken ahead than `AHEAD` for each request at a time.
        """
        pool = ThreadPoolExecutor(self.concurrency)
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(ask, item))
                if len(waiting) == AHEAD * self.concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if waiting:
                self._connection.cancel()
            pool.shutdown()

    def _asked_twice(self, ask: Callable[[], Result]) -> Result:
        """What is no answer may be one the next time; what took all its time is not asked again."""
        try:
            return ask()
        except NoAnswerError as error:
            if error.final:
                raise
            return ask()

    def _complete(self, prompt: Any, *, max_tokens: int, top: int = 1, **fields: Any) -> list[Answer]:
        """The answers to a prompt, or to each of several prompts of tokens."""
        body = {"model": self.model, "temperature": 0, "max_tokens": max_tokens} | fields
        if _is_chat(prompt):
            asked = {"messages": prompt, "reasoning_effort": REASONING_EFFORT, "logprobs": True, "top_logprobs": top}
            path = "chat/completions"
        else:
            path, asked = "completions", {"prompt": prompt, "logprobs": top, "add_special_tokens": False}
        several = isinstance(prompt, list) and prompt and isinstance(prompt[0], list)
        said = self._connection.ask("POST", path, body | asked)
        return answers_of(said, len(prompt) if several else 1, f"{self.url}/{path}")


def _is_chat(prompt: Prompt) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)
