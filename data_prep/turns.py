"""The turns of a conversation that are learnt, each in the prompt that a server would give the model for it.

A turn's example is the server's prompt up to it, and what the model then writes. Where the next turn's prompt begins
with exactly this text – after a tool's result, or all through a conversation whose template changes nothing behind
itself – both stand in one row, and no token is read twice. Where it does not – harmony ends an answer with <|return|>,
turns that into <|end|> and drops the analysis once the user goes on – the next turn begins a row of its own: one row
for both would train on prompts that no server sends.
"""

from __future__ import annotations

from typing import Literal

from data_prep.chat_template import Render
from data_prep.conversations import Conversation, LeftOutError

Loss = Literal["all", "last"]
Step = tuple[str, str]
"""What the model is given, and what it answers."""


def learnt_turns(conversation: Conversation, loss: Loss) -> list[int]:
    """The places of the assistant's turns that carry loss: all but those of weight 0, or the last one alone."""
    turns = [place for place, each in enumerate(conversation.messages) if each["role"] == "assistant"]
    return [place for place in turns[0 if loss == "all" else -1 :] if conversation.messages[place].get("weight") != 0]


def rows_of(render: Render, conversation: Conversation, loss: Loss) -> list[list[Step]]:
    """The rows of a conversation, each the steps of turns that continue one another.

    Raises:
        LeftOutError: no turn is learnt, or the template renders a turn otherwise than its prompt.
    """
    rows: list[list[Step]] = []
    before = ""
    for place in learnt_turns(conversation, loss):
        messages = conversation.messages[: place + 1]
        prompt, whole = render(messages[:-1], True, conversation.tools), render(messages, False, conversation.tools)
        if not whole.startswith(prompt) or len(whole) == len(prompt):
            raise LeftOutError("of which the chat template renders a turn otherwise than its prompt")
        answer = whole.removeprefix(prompt)
        if rows and prompt.startswith(before):
            rows[-1].append((prompt.removeprefix(before), answer))
        else:
            rows.append([(prompt, answer)])
        before = whole
    if not rows:
        raise LeftOutError("without a turn to learn from")
    return rows
