"""Chat templates of tokenizers, rendered in the environment that transformers gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Protocol

from common.errors import DataError
from common.values import one_line
from data_prep.conversations import INSTRUCTING, LeftOutError, Message, Tool


class Render(Protocol):
    """Messages and tools → text; `opened` where the assistant's next turn begins, else the last message is its answer.

    Raises:
        LeftOutError: a template refuses them.
    """

    def __call__(self, messages: Sequence[Message], opened: bool, tools: Sequence[Tool] = ()) -> str: ...


def template_renderer(template: str, names: Mapping[str, Any], arguments: Mapping[str, Any]) -> Render:
    """A function that renders with a template.

    Args:
        names: the tokenizer's special tokens by what they are (`eos_token`).
        arguments: whatever else the template may ask for.
    """
    # not by apply_chat_template: transformers 5 takes no function of the caller's, and the date comes from one
    compiled = _compiled(template)

    def render(messages: Sequence[Message], opened: bool, tools: Sequence[Tool] = ()) -> str:
        from jinja2.exceptions import TemplateError

        said = [_as_templates_take_it(message) for message in messages]
        try:
            text = compiled.render(
                messages=said, tools=list(tools) or None, add_generation_prompt=opened, **names, **arguments
            )
        except (TemplateError, TypeError) as error:  # TypeError: `+` on what the template expects to be there
            raise LeftOutError(f"which the chat template refuses ({one_line(error, 60)})") from None
        if any(m["role"] in (*INSTRUCTING, "user") and m["content"].strip() not in text for m in messages):
            raise LeftOutError("which the chat template does not show whole")
        return text

    return render


def ensure_shows_calls(render: Render) -> bool:
    """Whether a message with several calls is shown whole.

    Raises:
        DataError: one call, its result or the declared tools are not.
    """
    if not _shows(render, calls=1):
        raise DataError(
            "the tokenizer's chat template does not show tools, their calls and results: name a tokenizer whose "
            "template does, or prepare without --rendering template where the tokenizer is gpt-oss's."
        )
    return _shows(render, calls=2)


def _shows(render: Render, calls: int) -> bool:
    """Whether the rendering holds everything of a conversation with so many calls in one message."""
    function = {"name": "declared_tool", "description": "described tool", "parameters": {"type": "object"}}
    called = [{"name": f"called_{n}", "arguments": f'{{"k": "given {n}"}}'} for n in range(calls)]
    made = [{"id": f"callid00{n}", "type": "function", "function": each} for n, each in enumerate(called)]
    messages: list[Message] = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "", "tool_calls": made},
        *(
            {"role": "tool", "content": f"result {n}", "name": f"called_{n}", "tool_call_id": f"callid00{n}"}
            for n in range(calls)
        ),
    ]
    try:
        text = render(messages, True, [{"type": "function", "function": function}])
    except LeftOutError:
        return False
    shown = ["declared_tool", "described tool"]
    shown += [mark for n in range(calls) for mark in (f"called_{n}", f"given {n}", f"result {n}")]
    return all(mark in text for mark in shown)


def _as_templates_take_it(message: Message) -> Message:
    """A message with its calls' arguments as an object, and its thinking under the name that most templates ask for."""
    given = {name: value for name, value in message.items() if name != "weight"}
    if "thinking" in message:
        given["reasoning_content"] = message["thinking"]
    if "tool_calls" in message:
        given["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    return given


@cache
def _compiled(template: str) -> Any:
    # the environment of transformers' chat templates (utils/chat_template_utils.py), so that they read the same here
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` … `{% endgeneration %}`, around what the assistant says: its text."""

        tags: ClassVar[set[str]] = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, **settings: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **settings})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template)
