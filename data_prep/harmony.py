"""Harmony, the prompt format of gpt-oss: control tokens, rendering, and the prompt that asks for a label.

Source: openai/harmony, docs/format.md. A routing prompt ends with the header of the assistant's final channel, so that
the answer is the label and the end token and nothing else carries loss.

`render` writes what openai-harmony 0.0.8 writes of the messages that vLLM 0.32's chat API makes of a request, without
the library, which downloads its vocabulary; tests/data_prep/test_harmony_library.py compares them token by token. In a
call's header the recipient stands before the channel, and the type is plain `json`: vLLM and gpt-oss's template on the
Hub agree on both, where the format's examples have `<|constrain|>json`. A turn thinks, then speaks, then calls. vLLM
0.32 differs in two things (oss-harmony 0.0.11): `to=assistant` of a tool's result stands behind its channel, and what
is said before a call stands before the thinking.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import DataError
from common.hf_tokenizer import open_tokenizer
from common.values import one_line
from data_prep.chat_template import Render, template_renderer
from data_prep.conversations import INSTRUCTING, LeftOutError, Message, Tool, calls_of
from data_prep.tool_schemas import NAMESPACE, declare

CHAT_TEMPLATE = (Path(__file__).parent / "harmony_chat_template.jinja").read_text(encoding="utf-8")
START, END, MESSAGE, CHANNEL, RETURN = "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"
CALL = "<|call|>"
SPECIAL_TOKENS = [
    "<|startoftext|>", "<|endoftext|>", RETURN, "<|constrain|>", CHANNEL, START, END, MESSAGE, CALL,
]  # fmt: skip
DATE = "2025-08-05"  # pinned: the templates ask for today's date, which would make every run's prompts its own
REASONING_EFFORT = "low"  # the answer comes without analysis
SYSTEM = (
    f"You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: {DATE}\n\n"
    f"Reasoning: {REASONING_EFFORT}\n\n"
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
CALLS_CHANNEL = f"\nCalls to these tools must go to the commentary channel: '{NAMESPACE}'."
_DEVELOPER = re.compile(r"<\|start\|>developer<\|message\|># Instructions\n\n(.*?)<\|end\|>", re.DOTALL)
TICKET_MARK = "\N{OBJECT REPLACEMENT CHARACTER}ticket\N{OBJECT REPLACEMENT CHARACTER}"
FINAL_HEADER = f"{CHANNEL}final{MESSAGE}"

Rendering = Literal["server", "template"]


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
    try:
        parts = render(messages, True).split(TICKET_MARK)
    except LeftOutError:
        parts = []
    if len(parts) != 2:
        raise DataError("the tokenizer's chat template does not show the user's message once: name another tokenizer.")
    return Prompt(parts[0], parts[1] + FINAL_HEADER)


def render(messages: Sequence[Message], opened: bool, tools: Sequence[Tool] = ()) -> str:
    """The text of messages; `opened` where the assistant's next turn begins, else the last message is its answer.

    As when the model is served, turns up to the last final answer lose their analysis: the prompt of a turn is the same
    in training and behind vLLM.
    """
    instructions = messages[0]["content"] if messages and messages[0]["role"] in INSTRUCTING else None
    sections = [] if instructions is None else ["# Instructions", instructions]
    sections += [declare(tools)] if tools else []
    text = _message("system", SYSTEM + (CALLS_CHANNEL if tools else ""))
    if sections:
        text += _message("developer", "\n\n".join(sections))
    said = list(messages if instructions is None else messages[1:])
    answer = None if opened else len(said) - 1
    last_final = max((place for place, each in enumerate(said) if place != answer and _is_final(each)), default=-1)
    text += "".join(
        part for place, each in enumerate(said) for part in _turn(each, place > last_final, place == answer)
    )
    return f"{text}{START}assistant" if opened else text


def _turn(message: Message, with_analysis: bool, is_answer: bool) -> Iterator[str]:
    """The harmony messages of one message of a chat."""
    role, content = message["role"], message["content"]
    if role == "tool":
        yield _message(f"{NAMESPACE}.{message['name']} to=assistant{CHANNEL}commentary", content)
    elif role in INSTRUCTING:
        yield _message("developer", f"# Instructions\n\n{content}")
    elif role != "assistant":
        yield _message(role, content)
    else:
        if with_analysis and message.get("thinking"):
            yield _message(f"assistant{CHANNEL}analysis", message["thinking"])
        if _is_final(message):
            yield _message(f"assistant{CHANNEL}final", content, RETURN if is_answer else END)
        elif content:
            yield _message(f"assistant{CHANNEL}commentary", content)
        for call in calls_of(message):
            header = f"assistant to={NAMESPACE}.{call['name']}{CHANNEL}commentary json"
            yield _message(header, call["arguments"], CALL)


def _message(header: str, content: str, end: str = END) -> str:
    return f"{START}{header}{MESSAGE}{content}{end}"


def _is_final(message: Message) -> bool:
    return message["role"] == "assistant" and not message.get("tool_calls")


def renderer(tokenizer: Any | None = None, rendering: Rendering = "server") -> Render:
    """A function that renders messages as the model's server does, or with a chat template, the date pinned.

    "server" is `render` for gpt-oss's tokenizers, whose template vLLM does not read, and the tokenizer's own template
    for others; "template" is always the template, which writes two line breaks more after the developer's message.
    """
    if rendering == "server" and (tokenizer is None or set(SPECIAL_TOKENS) <= set(tokenizer.get_added_vocab())):
        return render
    arguments = {"strftime_now": lambda _: DATE, "reasoning_effort": REASONING_EFFORT, "documents": None}
    template = CHAT_TEMPLATE if tokenizer is None else tokenizer.get_chat_template()
    return template_renderer(template, {} if tokenizer is None else tokenizer.special_tokens_map, arguments)


def chat_instruction(prompt: Prompt) -> str:
    """The instruction of a routing prompt, for a server's chat API, which renders the same prompt from it.

    Raises:
        DataError: it would render another.
    """
    before = _DEVELOPER.search(prompt.before)
    if before is None or routing_prompt(render, before[1]) != prompt:
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
