"""Conversations as a help desk's assistant has them: several turns, tools, thinking, scripts of every kind."""

from __future__ import annotations

import json
import random
from typing import Any

TEXTS = (
    "My printer\n\nburns <b>now</b>", "Größe 👍🏽 日本語", "  two blanks\n", "a <|end|> b <|start|>system",
    "नमस्ते, मदद?",
    'He said "no"\\n', "42", "สวัสดี", "مرحبا بالعالم",
    "x = {'a': [1, 2]}", "to=functions.refund", "json", "…", "e\u0301",
)  # fmt: skip
TOOLS: list[dict[str, Any]] = [
    {
        "name": "get_status",
        "description": "Status of an order.\nNever guess.",
        "parameters": {
            "type": "object",
            "properties": {
                "order": {"type": "string", "description": "Its number"},
                "detail": {"type": "string", "enum": ["short", "full"], "default": "short"},
            },
            "required": ["order"],
        },
    },
    {
        "name": "refund",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {
                "lines": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"sku": {"type": "string"}, "n": {"type": "integer", "default": 1}},
                    },
                },
                "how": {
                    "oneOf": [{"type": "string", "description": "an IBAN"}, {"type": "number", "nullable": True}],
                    "description": "where to",
                },
            },
        },
    },
    {"name": "list-queues", "description": "Alle Warteschlangen – ohne Größe"},
    {"name": "noop", "description": "Nothing", "parameters": {}},
]


def chat(seed: int) -> dict[str, Any]:
    """One conversation: `messages`, and `tools` where it has any."""
    draw = random.Random(seed)
    tools = draw.sample(TOOLS, draw.randint(1, len(TOOLS))) if draw.random() < 0.75 else []
    messages: list[dict[str, Any]] = []
    if draw.random() < 0.6:
        messages.append({"role": draw.choice(["system", "developer"]), "content": _text(draw)})
    for turn in range(draw.randint(1, 4)):
        messages.append({"role": "user", "content": _content(draw, f"{seed}.{turn} {_text(draw)}")})
        while tools and draw.random() < 0.55:
            messages += _calls(draw, tools, len(messages))
        messages.append({"role": "assistant", "content": _content(draw, _text(draw)), **_thinking(draw)})
    if tools and draw.random() < 0.15:
        messages += [{"role": "user", "content": "once more"}, _calls(draw, tools, len(messages))[0]]
    listed = [{"type": "function", "function": tool} if draw.random() < 0.7 else tool for tool in tools]
    return {"messages": messages, **({"tools": listed} if tools else {})}


def _text(draw: random.Random) -> str:
    return " ".join(draw.choice(TEXTS) for _ in range(draw.randint(1, 3)))


def _content(draw: random.Random, text: str) -> Any:
    """The text, or its two parts behind and before a blank."""
    end = text.find(" ") + 1
    return text if draw.random() < 0.8 else [{"type": "text", "text": part} for part in (text[:end], text[end:])]


def _thinking(draw: random.Random) -> dict[str, str]:
    name = draw.choice(["thinking", "reasoning_content", "reasoning"])
    return {name: f"hm {_text(draw)}"} if draw.random() < 0.6 else {}


def _calls(draw: random.Random, tools: list[dict[str, Any]], place: int) -> list[dict[str, Any]]:
    """A turn that calls one tool or two, and their results."""
    called = [draw.choice(tools)["name"] for _ in range(1 if draw.random() < 0.8 else 2)]
    calls, results = [], []
    for number, name in enumerate(called):
        given: dict[str, Any] = {"order": _text(draw), "n": draw.randint(0, 9), "deep": {"a": [None, 1.5, True]}}
        arguments = draw.choice([json.dumps(given), json.dumps(given, ensure_ascii=False), given, "{}"])
        identity = f"call_{place}_{number}"
        calls.append({"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}})
        results.append(
            {"role": "tool", "tool_call_id": identity, "content": draw.choice(['{"ok": true}', _text(draw), ""])}
        )
    preamble = draw.choice([None, "", _text(draw)])
    return [{"role": "assistant", "content": preamble, **_thinking(draw), "tool_calls": calls}, *results]
