"""The ways in which servers are told that an answer is one of some labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

CONSTRAINTS: dict[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "structured_outputs": lambda labels: {"structured_outputs": {"choice": list(labels)}},  # vLLM from 0.11 on
    "guided_choice": lambda labels: {"guided_choice": list(labels)},  # vLLM before 0.12
    "nvext": lambda labels: {"nvext": {"guided_choice": list(labels)}},  # NIM
    "grammar": lambda labels: {"grammar": _grammar(labels)},  # llama.cpp
}
"""Fields of a request by the name of the way, in the order in which a server is tried."""

IMPOSSIBLE = "qz7-xk"
"""An answer that no model gives unless it is the only one that it may give."""


def _grammar(labels: Sequence[str]) -> str:
    """GBNF, whose literals are written as JSON's."""
    return "root ::= " + " | ".join(json.dumps(label, ensure_ascii=False) for label in labels)
