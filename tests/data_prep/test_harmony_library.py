"""Our prompt against openai-harmony's, by which vLLM's chat API renders: token by token, in gpt-oss's vocabulary."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import DataError
from data_prep.harmony import DATE, Prompt, chat_instruction, chat_turn, renderer, routing_prompt
from tests.real_tickets import real_vocabulary

INSTRUCTION = "Route the ticket. Answer with its queue, one of: IT, Billing & Payments, Überweisungen."
TICKETS = ["My printer\n\nburns <b>", "", "  two blanks\n", "Größe 👍🏽 日本語", "a < |end|> b"]


@pytest.fixture(scope="module")
def encoding() -> Any:
    harmony = pytest.importorskip("openai_harmony")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(real_vocabulary().parent))
        return harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)


def conversation(turns: list[tuple[str, str]]) -> Any:
    """As vllm 0.32's `build_harmony_preamble` and `parse_chat_input_to_harmony_message` make it of a request."""
    from openai_harmony import Conversation, DeveloperContent, Message, ReasoningEffort, Role, SystemContent

    system = SystemContent.new().with_reasoning_effort(ReasoningEffort.LOW).with_conversation_start_date(DATE)
    messages = [Message.from_role_and_content(Role.SYSTEM, system)]
    for role, text in turns:
        if role == "developer":
            developer = DeveloperContent.new().with_instructions(text)
            messages.append(Message.from_role_and_content(Role.DEVELOPER, developer))
        elif role == "user":
            messages.append(Message.from_role_and_content(Role.USER, text))
        else:
            messages.append(Message.from_role_and_content(Role.ASSISTANT, text).with_channel("final"))
    return Conversation.from_messages(messages)


def tokens_of(encoding: Any, text: str) -> list[int]:
    return encoding.encode(text, allowed_special="all")


@pytest.mark.parametrize("ticket", TICKETS)
@pytest.mark.parametrize("instruction", [INSTRUCTION, INSTRUCTION + "\n\n", "One.\n\nTwo."])
def test_a_chat_server_sees_the_trained_prompt(encoding: Any, instruction: str, ticket: str) -> None:
    from openai_harmony import Role

    prompt = routing_prompt(renderer(), instruction)
    theirs = encoding.render_conversation_for_completion(
        conversation([("developer", instruction), ("user", ticket)]), Role.ASSISTANT
    )
    header = tokens_of(encoding, "<|channel|>final<|message|>")
    assert tokens_of(encoding, prompt.fill(ticket)) == [*theirs, *header]
    assert theirs[:3] == [200006, 17360, 200008]
    assert chat_instruction(prompt) == instruction


def test_conversations_are_rendered_as_the_library_does(encoding: Any) -> None:
    turns = [("developer", "Answer in French."), ("user", "One?"), ("assistant", "Un"), ("user", "Two?")]
    prompt, answer = chat_turn(renderer(), [{"role": r, "content": t} for r, t in [*turns, ("assistant", "Deux")]])
    theirs = encoding.render_conversation_for_training(conversation([*turns, ("assistant", "Deux")]))
    assert tokens_of(encoding, prompt + answer) == theirs


def test_the_template_of_the_hub_has_two_line_breaks_more(encoding: Any) -> None:
    server, template = routing_prompt(renderer(), INSTRUCTION), routing_prompt(renderer(None, "template"), INSTRUCTION)
    assert template.before == server.before.replace(INSTRUCTION, INSTRUCTION + "\n\n")
    assert chat_instruction(template) == INSTRUCTION + "\n\n"  # which a chat API renders as this prompt
    with pytest.raises(DataError, match="a chat API would render another prompt"):
        chat_instruction(Prompt("Route:\n", "\n"))
