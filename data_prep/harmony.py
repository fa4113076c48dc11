"""The harmony prompt format of gpt-oss: control tokens, chat template, and rendering of a ticket.

Source: openai/harmony, the format's description. A prompt ends with the header of the assistant's final channel, so
that the answer is the label and the end token, and nothing else carries loss.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (Path(__file__).parent / "harmony_chat_template.jinja").read_text(encoding="utf-8")
START, END, MESSAGE, CHANNEL, RETURN = "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"
SPECIAL_TOKENS = [
    "<|startoftext|>", "<|endoftext|>", RETURN, "<|constrain|>", CHANNEL, START, END, MESSAGE, "<|call|>",
]  # fmt: skip
DATE = "2025-08-05"  # pinned: the templates put today's date into the system message, which would age the prompts
FINAL = f"{CHANNEL}final{MESSAGE}"
_CONTROL = re.compile(r"<\|([a-z_0-9]*)\|>")

Render = Callable[[list[dict[str, str]]], str]


def escape_control_tokens(text: str) -> str:
    """Text in which nothing is a control token: `<|start|>` becomes `< |start| >`, as any `<|name|>` does."""
    return _CONTROL.sub(r"< |\1| >", text)


def prompt(render: Render, instruction: str, ticket: str) -> str:
    """The prompt of one ticket, up to and with the header of the final channel."""
    messages = [
        {"role": "developer", "content": instruction},
        {"role": "user", "content": escape_control_tokens(ticket)},
    ]
    return render(messages) + FINAL


def renderer(tokenizer: str | None) -> Render:
    """Renders messages and the start of the assistant's turn, with a tokenizer's own chat template or with ours.

    Raises:
        DataError: the folder has no tokenizer or the tokenizer no chat template.
    """
    if tokenizer is None:
        template = _own_template()
        return lambda messages: template.render(messages=messages, add_generation_prompt=True)
    loaded = load_tokenizer(tokenizer)

    def render(messages: list[dict[str, str]]) -> str:
        # gpt-oss's template calls strftime_now for the date; a function given here takes its place
        return str(
            loaded.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, strftime_now=lambda _: DATE
            )
        )

    return render


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a folder or Hub id.

    Raises:
        DataError: there is none, or it has no chat template.
    """
    from transformers import AutoTokenizer

    from errors import DataError

    try:
        loaded = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder} has no tokenizer that can be loaded ({str(error)[:150]}): name another.") from None
    if not loaded.chat_template:
        raise DataError(f"the tokenizer of {folder} has no chat template: name another, or use format=completion.")
    return loaded


@cache
def _own_template() -> Any:
    from jinja2 import Environment

    return Environment(trim_blocks=False).from_string(CHAT_TEMPLATE)
