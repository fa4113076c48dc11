"""Harmony, the prompt format of gpt-oss: control tokens, chat template, rendering.

Source: openai/harmony, docs/format.md. A routing prompt ends with the header of the assistant's final channel, so that
the answer is the label and the end token and nothing else carries loss.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from common.errors import DataError
from common.hf_tokenizer import open_tokenizer
from common.values import one_line

CHAT_TEMPLATE = (Path(__file__).parent / "harmony_chat_template.jinja").read_text(encoding="utf-8")
START, END, MESSAGE, CHANNEL, RETURN = "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"
SPECIAL_TOKENS = [
    "<|startoftext|>", "<|endoftext|>", RETURN, "<|constrain|>", CHANNEL, START, END, MESSAGE, "<|call|>",
]  # fmt: skip
DATE = "2025-08-05"  # pinned: the templates ask for today's date, which would make every run's prompts its own
REASONING_EFFORT = "low"  # the answer comes without analysis
_DEVELOPER = re.compile(r"<\|start\|>developer<\|message\|># Instructions\n\n(.*?)<\|end\|>", re.DOTALL)
_DEVELOPER_END = re.compile(r"(<\|start\|>developer<\|message\|>(?:(?!(?:\n\n)?<\|end\|>).)*)\n\n<\|end\|>", re.DOTALL)
TICKET_MARK = "\N{OBJECT REPLACEMENT CHARACTER}ticket\N{OBJECT REPLACEMENT CHARACTER}"
FINAL_HEADER = f"{CHANNEL}final{MESSAGE}"

Message = Mapping[str, str | None]
Rendering = Literal["server", "template"]
Render = Callable[[Sequence[Message], bool], str]
"""Messages, and whether the assistant's turn is to be opened → text."""


@dataclass(frozen=True)
class Prompt:
    """A prompt around a ticket: what stands before and after it."""

    before: str
    after: str

    def fill(self, ticket: str) -> str:
        """The whole prompt of a ticket, whose text stays text."""
        return self.before + escape_control_tokens(ticket) + self.after


def escape_control_tokens(text: str) -> str:
    """Text in which nothing is a control token: `<|` becomes `< |`, since every one of gpt-oss's begins so."""
    return text.replace("<|", "< |")


def routing_prompt(render: Render, instruction: str) -> Prompt:
    """The prompt that asks for a label, up to and with the header of the final channel.

    Raises:
        DataError: the chat template does not show the user's message as it is, once.
    """
    messages = [{"role": "developer", "content": instruction}, {"role": "user", "content": TICKET_MARK}]
    parts = render(messages, True).split(TICKET_MARK)
    if len(parts) != 2:
        raise DataError("the tokenizer's chat template does not show the user's message once: name another tokenizer.")
    return Prompt(parts[0], parts[1] + FINAL_HEADER)


def chat_turn(render: Render, messages: Sequence[Message]) -> tuple[str, str]:
    """A conversation as prompt and answer: the last assistant turn is the answer, its thinking included.

    Raises:
        DataError: the conversation does not end with the assistant, or the template renders it otherwise than its
            beginning.
    """
    clean = [
        {name: escape_control_tokens(text) if name != "role" else text for name, text in message.items() if text}
        for message in messages
    ]
    if not clean or clean[-1].get("role") != "assistant" or not clean[-1].get("content"):
        raise DataError("the conversation does not end with an answer of the assistant")
    prompt, whole = render(clean[:-1], True), render(clean, False)
    if not whole.startswith(prompt):
        raise DataError("the chat template renders the conversation otherwise than its beginning")
    return prompt, whole.removeprefix(prompt)


def renderer(tokenizer: Any | None = None, rendering: Rendering = "server") -> Render:
    """A function that renders messages with a tokenizer's own chat template, or with ours, the date pinned.

    With "server" the text is that of openai-harmony 0.0.8, which vLLM's chat API renders with; gpt-oss's template on
    the Hub writes two line breaks more after the developer's message, as ours does, and "template" keeps them.
    """
    # not by apply_chat_template: transformers 5 takes no function of the caller's, and the date comes from one
    arguments = {"strftime_now": lambda _: DATE, "reasoning_effort": REASONING_EFFORT, "tools": None, "documents": None}
    template = _compiled(CHAT_TEMPLATE if tokenizer is None else tokenizer.get_chat_template())
    names = {} if tokenizer is None else tokenizer.special_tokens_map

    def render(messages: Sequence[Message], opened: bool) -> str:
        text = template.render(messages=messages, add_generation_prompt=opened, **names, **arguments)
        return text if rendering == "template" else _DEVELOPER_END.sub(r"\1<|end|>", text)

    return render


def chat_instruction(prompt: Prompt) -> str:
    """The instruction of a routing prompt, for a server's chat API, which renders the same prompt from it.

    Raises:
        DataError: it would render another.
    """
    before = _DEVELOPER.search(prompt.before)
    if before is None or routing_prompt(renderer(), before[1]) != prompt:
        raise DataError("a chat API would render another prompt than the data's: prepare again, or leave out --chat.")
    return before[1]


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a folder or Hub id.

    Raises:
        DataError: there is none, or it has no chat template.
    """
    try:
        loaded = open_tokenizer(folder)
    except Exception as error:  # tokenizers 0.22 raises a bare Exception for a damaged tokenizer.json
        raise DataError(f"{folder} has no tokenizer that can be loaded ({one_line(error)}): name another.") from None
    if not loaded.chat_template:
        raise DataError(f"the tokenizer of {folder} has no chat template: name another, or use format=completion.")
    return loaded


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
