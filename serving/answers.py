"""What a server's JSON says, checked: text is text, a log-probability is a number that one can be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from common.values import one_line
from serving.connection import NoAnswerError

_PREFIX = "token_id:"  # vLLM's, with return_tokens_as_token_ids
_ID = re.compile(_PREFIX + r"\d{1,9}")
_ROUNDING = 1e-3  # above 0 by no more than this is the rounding of a probability of 1


@dataclass(frozen=True)
class Served:
    """One model of a server's list; `parent` is the base of an adapter, `root` where the server loaded it from."""

    id: str
    root: str | None
    parent: str | None


@dataclass(frozen=True)
class Answer:
    """One choice of a completion: its text without the end token, and its log-probabilities, checked when asked for."""

    text: str
    where: str
    given: Any

    @cached_property
    def log_probabilities(self) -> list[float | None]:
        """Of its tokens, natural logarithm; None for the first of an echoed prompt; empty where the server gives none.

        Raises:
            NoAnswerError: one is no log-probability.
        """
        if "content" in self._dictionary:
            own = [step.get("logprob") for step in self._steps]
        else:
            own = self._list(self._dictionary.get("token_logprobs"))
        first = [None] if own and own[0] is None else []  # nothing stands before the first token of a prompt
        return first + [self._log_probability(each) for each in own[len(first) :]]

    @cached_property
    def top(self) -> list[dict[str, float]]:
        """For each token the log-probabilities of some tokens, by their text or by `token_id:` and their number.

        Raises:
            NoAnswerError: one is no log-probability.
        """
        if "content" in self._dictionary:
            named = [self._dictionaries(step.get("top_logprobs")) for step in self._steps]
            top = [{str(each.get("token")): each.get("logprob") for each in step} for step in named]
        else:
            top = self._dictionaries([each or {} for each in self._list(self._dictionary.get("top_logprobs"))])
        return [{token: self._log_probability(each) for token, each in step.items()} for step in top]

    def steps_by_id(self) -> list[tuple[int, dict[int, float]]]:
        """Each token by its number, and log-probabilities by number; empty where the server names no numbers."""
        named = self._list(self._dictionary.get("tokens"))
        names = [[str(token), *top] for token, top in zip(named, self.top, strict=False)]
        if not all(_ID.fullmatch(name) for step in names for name in step):
            return []
        ids = [{int(name.removeprefix(_PREFIX)): value for name, value in top.items()} for top in self.top]
        return [(int(str(token).removeprefix(_PREFIX)), top) for token, top in zip(named, ids, strict=False)]

    @cached_property
    def _dictionary(self) -> dict[str, Any]:
        return self._dictionaries([self.given or {}])[0]

    @cached_property
    def _steps(self) -> list[dict[str, Any]]:
        """Of chat completions, and of llama.cpp's completions."""
        return self._dictionaries(self._dictionary["content"])

    def _list(self, value: Any) -> list[Any]:
        if not isinstance(value or [], list):
            raise NoAnswerError(f"{self.where} gives log-probabilities that are none.")
        return value or []

    def _dictionaries(self, value: Any) -> list[dict[str, Any]]:
        if not all(isinstance(each, dict) for each in self._list(value)):
            raise NoAnswerError(f"{self.where} gives log-probabilities that are none.")
        return self._list(value)

    def _log_probability(self, value: Any) -> float:
        if type(value) not in (int, float) or not -1e6 < value <= _ROUNDING:
            raise NoAnswerError(f"{self.where} gives the log-probability {one_line(repr(value), 40)}, which is none.")
        return min(0.0, float(value))


def models_of(said: Any, where: str) -> list[Served]:
    """The models of `/v1/models`.

    Raises:
        NoAnswerError: it is no list of models.
    """
    data = said.get("data") if isinstance(said, dict) else None
    if not isinstance(data, list) or not all(isinstance(each, dict) and _is_name(each.get("id")) for each in data):
        raise NoAnswerError(f"{where} answers without a list of models: it is no OpenAI-compatible server.")
    return [Served(each["id"], _text(each.get("root")), _text(each.get("parent"))) for each in data]


def answers_of(said: Any, count: int, where: str) -> list[Answer]:
    """The choices of a completion or a chat completion, in the order of the prompts.

    Raises:
        NoAnswerError: they are not so many, or one has no text.
    """
    choices = said.get("choices") if isinstance(said, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        problem = f" ({one_line(str(said['error']), 120)})" if isinstance(said, dict) and said.get("error") else ""
        raise NoAnswerError(f"{where} answers without choices{problem}: it is no OpenAI-compatible server.")
    if len(choices) != count:
        raise NoAnswerError(f"{where} answers with {len(choices)} choices where {count} were asked for.")
    places = [choice.get("index", place) for place, choice in enumerate(choices)]
    if any(type(place) is not int for place in places) or sorted(places) != list(range(count)):
        raise NoAnswerError(f"{where} numbers its choices wrongly.")
    ordered = sorted(zip(places, choices, strict=True), key=lambda pair: pair[0])
    return [_answer(choice, where) for _, choice in ordered]


def tokens_of(said: Any, where: str) -> list[int]:
    """The tokens of `/tokenize`.

    Raises:
        NoAnswerError: it is no list of them.
    """
    tokens = said.get("tokens") if isinstance(said, dict) else None
    if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
        raise NoAnswerError(f"{where} answers without tokens.")
    return tokens


def _answer(choice: dict[str, Any], where: str) -> Answer:
    message = choice.get("message")
    text = choice.get("text")
    if isinstance(message, dict):
        text = message.get("content", "")
        text = "" if text is None else text  # a chat that ended before its answer
    if not isinstance(text, str):
        raise NoAnswerError(f"{where} answers without text.")
    return Answer(text, where, choice.get("logprobs"))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
