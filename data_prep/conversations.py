"""Conversations in OpenAI's chat format, as their writers have them → one form, or the reason why one is left out.

Source: platform.openai.com, "Chat completions" and "Supervised fine-tuning" (`weight`); the thinking of an assistant
stands under any of the names that servers and data sets give it. What comes out, as OpenAI's chat API takes it:

    {"role": "assistant", "content": …, "thinking": …, "weight": 0,
     "tool_calls": [{"id": …, "type": "function", "function": {"name": …, "arguments": a JSON object as text}}]}
    {"role": "tool", "content": …, "name": the function that was called, "tool_call_id": …}
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.errors import DataError
from data_prep.readers.rows import as_text, without_nulls

ROLES = ("system", "developer", "user", "assistant", "tool")
INSTRUCTING = ("system", "developer")
THINKING = ("thinking", "reasoning_content", "reasoning")
_TEXT_PARTS = ("text", "input_text", "output_text")
_FUNCTION = re.compile(r"[\w.-]{1,128}", re.ASCII)

Message = dict[str, Any]
Tool = dict[str, Any]


class LeftOutError(DataError):
    """A conversation that cannot be trained on; the message is the reason, as the report counts it."""


@dataclass
class Conversation:
    """Messages in the form that this file's beginning shows, and the tools, each `{"type": "function", …}`."""

    messages: list[Message] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)

    def mapped(self, function: Callable[[str], str]) -> Conversation:
        """The conversation with a function applied to each of its texts and names."""
        return Conversation(map_texts(self.messages, function), map_texts(self.tools, function))

    @property
    def words(self) -> str:
        """What is said and called, without thinking: by it two conversations are the same."""
        said = ([message["content"], *map(_spoken, calls_of(message))] for message in self.messages)
        return "\n".join(text for texts in said for text in texts if text)


def calls_of(message: Mapping[str, Any]) -> list[dict[str, str]]:
    """The functions that a message calls: name and arguments."""
    return [call["function"] for call in message.get("tool_calls", ())]


def map_texts(value: Any, function: Callable[[str], str]) -> Any:
    """A JSON value with a function applied to its texts and keys."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, list):
        return [map_texts(each, function) for each in value]
    if isinstance(value, dict):
        return {function(key): map_texts(each, function) for key, each in value.items()}
    return value


def read_conversation(messages: str, tools: str = "") -> Conversation:
    """The conversation in the columns `messages` and `tools`.

    Raises:
        LeftOutError: it is none, does not end with the assistant, or has a turn that cannot be rendered.
    """
    turns = _json(messages)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise LeftOutError("without a conversation that ends in an answer")
    functions: dict[str, str] = {}
    said = [message for turn in turns if (message := _message(turn, functions)) is not None]
    if not said or said[-1]["role"] != "assistant":
        raise LeftOutError("without a conversation that ends in an answer")
    if not any(message["role"] == "user" for message in said):
        raise LeftOutError("without a turn of the user")
    return Conversation(said, _tools(tools))


def _json(text: str) -> Any:
    """A JSON value, whose texts any encoding can write; None where it is damaged."""
    try:
        value = json.loads(text)
        return map_texts(json.loads(value) if isinstance(value, str) else value, as_text)
    except (ValueError, RecursionError):
        return None


def _message(turn: dict[str, Any], functions: dict[str, str]) -> Message | None:
    """A turn in our form, None for instructions that say nothing; `functions` gets what is called, by calls' ids."""
    role = {"function": "tool", "model": "assistant"}.get(str(turn.get("role")), turn.get("role"))
    if role not in ROLES:
        raise LeftOutError("with a turn of an unknown role")
    content = _result(turn.get("content")) if role == "tool" else _text(turn.get("content"))
    if role in INSTRUCTING and not content.strip():
        return None
    message: Message = {"role": role, "content": content}
    if role == "assistant":
        return message | _of_assistant(turn, content, functions)
    if role == "tool":
        identity = turn.get("tool_call_id") or next(iter(functions), "")
        name = functions.pop(str(identity), None) or turn.get("name")
        name = name.removeprefix("functions.") if isinstance(name, str) else ""
        if not _FUNCTION.fullmatch(name):
            raise LeftOutError("with a tool result that answers no call")
        return message | {"name": name, "tool_call_id": str(identity)}
    return message


def _of_assistant(turn: dict[str, Any], content: str, functions: dict[str, str]) -> Message:
    """What only the assistant's turns have."""
    calls = turn.get("tool_calls") or ([{"function": turn["function_call"]}] if turn.get("function_call") else [])
    if not isinstance(calls, list):
        raise LeftOutError("with a tool call that names no function")
    more: Message = {}
    thinking = next((text for name in THINKING if (text := _text(turn.get(name))).strip()), "")
    if thinking:
        more["thinking"] = thinking
    if calls:
        functions.clear()
        more["tool_calls"] = [_call(call, number) for number, call in enumerate(calls)]
        functions.update((call["id"], call["function"]["name"]) for call in more["tool_calls"])
    elif not content.strip():
        raise LeftOutError("with a turn of the assistant that says nothing")
    if turn.get("weight") == 0:
        more["weight"] = 0
    return more


def _call(call: Any, number: int) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    name = name.removeprefix("functions.") if isinstance(name, str) else ""
    if not isinstance(function, dict) or not _FUNCTION.fullmatch(name):
        raise LeftOutError("with a tool call that names no function")
    arguments = function.get("arguments", function.get("parameters"))
    if not isinstance(arguments, str):
        # as the model writes them: without blanks between the members
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False, separators=(",", ":"))
    arguments = arguments.strip() or "{}"
    if not isinstance(_json(arguments), dict):
        raise LeftOutError("with a tool call whose arguments are no JSON object")
    made = {"name": name, "arguments": arguments}
    return {"id": str(call.get("id") or f"call_{number}"), "type": "function", "function": made}


def _text(content: Any) -> str:
    """The text of a turn: itself, or its parts in a row."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if _is_text_part(part) else part or "" for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise LeftOutError("with a turn that is not text")
    return "".join(texts)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _TEXT_PARTS


def _result(content: Any) -> str:
    """What a tool gave back: text, or a value, as JSON."""
    is_text = content is None or isinstance(content, str)
    if is_text or (isinstance(content, list) and content and all(map(_is_text_part, content))):
        return _text(content)
    return json.dumps(content, ensure_ascii=False)


def _tools(value: str) -> list[Tool]:
    """Function schemas, bare ones and those of OpenAI's interface; without nulls, which neither openai-harmony has."""
    if value.strip() in ("", "null"):
        return []
    listed = _json(value)
    if not isinstance(listed, list):
        raise LeftOutError("with tools that are no list of function schemas")
    return [_tool(without_nulls(each)) for each in listed]


def _tool(schema: Any) -> Tool:
    function = schema.get("function", schema) if isinstance(schema, dict) else {}
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not _FUNCTION.fullmatch(name):
        raise LeftOutError("with tools that are no list of function schemas")
    described, parameters = function.get("description", ""), function.get("parameters")
    if not isinstance(described, str) or not isinstance(parameters, dict | None):
        raise LeftOutError("with tools that are no list of function schemas")
    found: Tool = {"name": name, "description": described}
    return {"type": "function", "function": found if parameters is None else found | {"parameters": parameters}}


def _spoken(function: Mapping[str, str]) -> str:
    return f"{function['name']} {function['arguments']}"
