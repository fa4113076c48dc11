"""Our prompts against openai-harmony's, by which vLLM's chat API renders: token by token, in gpt-oss's vocabulary."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

from benchmarks.gpt_oss_tokenizer import write_gpt_oss_tokenizer
from common.errors import DataError
from data_prep.conversations import Conversation, read_conversation
from data_prep.harmony import DATE, Prompt, chat_instruction, escape_control_tokens, render, renderer, routing_prompt
from data_prep.options import PrepareOptions
from data_prep.preparation import prepare
from data_prep.row_format import fields_of, steps_in, tokens_and_loss
from data_prep.tool_schemas import declare
from data_prep.turns import learnt_turns, rows_of
from tests.data_prep.generated_chats import chat
from tests.real_tickets import real_vocabulary

INSTRUCTION = "Route the ticket. Answer with its queue, one of: IT, Billing & Payments, Überweisungen."
TICKETS = ["My printer\n\nburns <b>", "", "  two blanks\n", "Größe 👍🏽 日本語", "a < |end|> b"]
CHATS = range(100)


@pytest.fixture(scope="module")
def encoding() -> Any:
    harmony = pytest.importorskip("openai_harmony")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(real_vocabulary().parent))
        return harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)


def preamble(instructions: str | None, tools: list[Any]) -> list[Any]:
    """As vllm 0.32's `build_harmony_preamble` makes it of a request."""
    from openai_harmony import DeveloperContent, Message, ReasoningEffort, Role, SystemContent, ToolDescription

    system = SystemContent.new().with_reasoning_effort(ReasoningEffort.LOW).with_conversation_start_date(DATE)
    messages = [Message.from_role_and_content(Role.SYSTEM, system)]
    if instructions or tools:
        developer = DeveloperContent.new()
        if instructions is not None:
            developer = developer.with_instructions(instructions)
        if tools:
            functions = [tool.get("function", tool) for tool in tools]
            developer = developer.with_function_tools(
                [ToolDescription.new(f["name"], f.get("description") or "", f.get("parameters")) for f in functions]
            )
        messages.append(Message.from_role_and_content(Role.DEVELOPER, developer))
    return messages


def conversation(messages: list[dict[str, Any]], tools: list[Any], *, answer: bool = False) -> Any:
    """As vllm 0.32's `parse_chat_input_to_harmony_message` and `auto_drop_analysis_messages` make it of a request.

    One thing is otherwise: vLLM puts what is said before a call in front of the thinking that led to it; docs/format.md
    of openai/harmony has it behind. With `answer` the last message is what the model answers, thinking included.
    """
    from openai_harmony import Author, Conversation, Message, Role

    first = messages[0]["role"] in ("system", "developer")
    begun = preamble(messages[0]["content"] if first else None, tools)
    names = {call["id"]: call["function"]["name"] for m in messages for call in m.get("tool_calls", [])}
    said: list[Any] = []
    before_answer = 0
    for number, m in enumerate(messages[first:], first):
        if answer and number == len(messages) - 1:
            before_answer = len(said)
        text = m["content"] if isinstance(m["content"], str) else "".join(p["text"] for p in m["content"] or [])
        if m["role"] == "tool":
            author = Author.new(Role.TOOL, f"functions.{names[m['tool_call_id']]}")
            result = Message.from_author_and_content(author, text).with_channel("commentary")
            said.append(result.with_recipient("assistant"))
        elif m["role"] == "user":
            said.append(Message.from_role_and_content(Role.USER, text))
        else:
            thinking = m.get("thinking") or m.get("reasoning_content") or m.get("reasoning")
            calls = m.get("tool_calls", [])
            spoken = [(thinking, "analysis"), (text, "commentary" if calls else "final")]
            said += [Message.from_role_and_content(Role.ASSISTANT, t).with_channel(c) for t, c in spoken if t]
            for call in calls:
                arguments = call["function"]["arguments"]
                if not isinstance(arguments, str):
                    arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
                made = Message.from_role_and_content(Role.ASSISTANT, arguments).with_channel("commentary")
                said.append(made.with_recipient(f"functions.{call['function']['name']}").with_content_type("json"))
    ends = before_answer if answer else len(said)
    last = max((place for place, m in enumerate(said[:ends]) if m.channel == "final"), default=-1)
    return Conversation.from_messages(begun + [m for n, m in enumerate(said) if n > last or m.channel != "analysis"])


def tokens_of(encoding: Any, text: str) -> list[int]:
    return encoding.encode(text, allowed_special="all")


def given(encoding: Any, messages: list[dict[str, Any]], tools: list[Any]) -> list[int]:
    """The prompt of a turn behind these messages, by the library."""
    from openai_harmony import RenderConversationConfig, Role

    kept = RenderConversationConfig(auto_drop_analysis=False)  # vLLM has dropped what is to be dropped
    return encoding.render_conversation_for_completion(conversation(messages, tools), Role.ASSISTANT, kept)


def answered(encoding: Any, messages: list[dict[str, Any]], tools: list[Any]) -> list[int]:
    """The prompt of the last message and that message as it is trained, by the library."""
    from openai_harmony import RenderConversationConfig

    kept = RenderConversationConfig(auto_drop_analysis=False)
    return encoding.render_conversation_for_training(conversation(messages, tools, answer=True), kept)


def read(row: dict[str, Any]) -> Conversation:
    return read_conversation(json.dumps(row["messages"]), json.dumps(row.get("tools")))


def safe(seed: int) -> dict[str, Any]:
    """A generated conversation in whose texts nothing is a control token."""
    return json.loads(escape_control_tokens(json.dumps(chat(seed))))


@pytest.mark.parametrize("ticket", TICKETS)
@pytest.mark.parametrize("instruction", [INSTRUCTION, INSTRUCTION + "\n\n", "One.\n\nTwo."])
def test_a_chat_server_sees_the_trained_prompt(encoding: Any, instruction: str, ticket: str) -> None:
    prompt = routing_prompt(renderer(), instruction)
    theirs = given(encoding, [{"role": "developer", "content": instruction}, {"role": "user", "content": ticket}], [])
    header = tokens_of(encoding, "<|channel|>final<|message|>")
    assert tokens_of(encoding, prompt.fill(ticket)) == [*theirs, *header]
    assert theirs[:3] == [200006, 17360, 200008]
    assert chat_instruction(prompt) == instruction


@pytest.mark.parametrize("seed", CHATS)
def test_every_turn_is_trained_in_the_prompt_that_a_server_gives_it(encoding: Any, seed: int) -> None:
    """Up to each answer a row is the server's prompt, behind it the library's training text, and it alone has loss."""
    row = safe(seed)
    messages, tools, said = row["messages"], row.get("tools", []), read(row)
    turns = iter(learnt_turns(said, "all"))
    for steps in rows_of(render, said, "all"):
        tokens, learnt = tokens_and_loss(fields_of(steps), lambda text: tokens_of(encoding, text))
        assert tokens_of(encoding, "".join(map("".join, steps))) == tokens, "in parts as in one"
        end = 0
        for place in (next(turns) for _ in steps):
            prompt = given(encoding, messages[:place], tools)
            whole = answered(encoding, messages[: place + 1], tools)
            assert tokens[: len(whole)] == whole
            assert whole[: len(prompt)] == prompt, "what is trained is what is asked"
            assert learnt[end : len(whole)] == [False] * (len(prompt) - end) + [True] * (len(whole) - len(prompt))
            end = len(whole)
        assert end == len(tokens)
        assert tokens[-1] == (200012 if messages[place].get("tool_calls") else 200002)
    assert next(turns, None) is None, "every turn is learnt once"


@pytest.mark.parametrize("seed", CHATS)
def test_the_last_turn_alone_is_the_end_of_the_whole_conversation(encoding: Any, seed: int) -> None:
    row = safe(seed)
    ((step,),) = rows_of(render, read(row), "last")
    tokens, learnt = tokens_and_loss(fields_of([step]), lambda text: tokens_of(encoding, text))
    assert tokens == answered(encoding, row["messages"], row.get("tools", []))
    assert learnt == [False] * len(tokens_of(encoding, step[0])) + [True] * len(tokens_of(encoding, step[1]))


@pytest.mark.slow
def test_prepare_packs_the_librarys_tokens(encoding: Any, tmp_path: Path) -> None:
    """Through gpt-oss's tokenizer as transformers has it, and everything that `prepare` does."""
    write_gpt_oss_tokenizer(real_vocabulary(), tmp_path / "tokenizer")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(safe(seed)) + "\n" for seed in CHATS))
    options = PrepareOptions(
        tokenizer=str(tmp_path / "tokenizer"),
        loss="all",
        pack=8192,
        near_duplicates=1,
        skip=("nfc", "control-characters"),
        split="1/0/0",
    )
    prepare(tmp_path / "t.jsonl", tmp_path / "out", options)
    found = []
    for sequence in np.load(tmp_path / "out" / "packed" / "training_8192.npy", allow_pickle=True):
        ids, mask = sequence["input_ids"], sequence["loss_mask"]
        for start, end in pairwise([*sequence["seq_start_id"], len(ids)]):
            found.append((ids[start:end], [False, *mask[start : end - 1]]))
    expected = []
    for row in map(safe, CHATS):
        messages, tools, said = row["messages"], row.get("tools", []), read(row)
        turns = iter(learnt_turns(said, "all"))
        for steps in rows_of(render, said, "all"):
            learnt: list[bool] = []
            for place in (next(turns) for _ in steps):
                learnt += [False] * (len(given(encoding, messages[:place], tools)) - len(learnt))
                learnt += [True] * (len(answered(encoding, messages[: place + 1], tools)) - len(learnt))
            expected.append((answered(encoding, messages[: place + 1], tools), learnt))
    assert sorted(found) == sorted(expected)


def test_the_generated_conversations_are_of_every_kind() -> None:
    chats = [read(safe(seed)) for seed in CHATS]
    turns = [m for c in chats for m in c.messages if m["role"] == "assistant"]
    steps = [len(steps) for c in chats for steps in rows_of(render, c, "all")]
    assert sum(bool(c.tools) for c in chats) > 60
    assert sum(len(m.get("tool_calls", ())) == 1 for m in turns) > 60
    assert sum(len(m.get("tool_calls", ())) == 2 for m in turns) > 10
    assert sum("thinking" in m for m in turns) > 100
    assert sum(bool(m["content"] and m.get("tool_calls")) for m in turns) > 20, "spoken before a call"
    assert sum("tool_calls" in c.messages[-1] for c in chats) > 5
    assert max(steps) > 3
    assert len(steps) > 150


@pytest.mark.parametrize("seed", CHATS)
def test_a_turn_goes_on_where_the_one_before_ended_until_an_answer_is_given(seed: int) -> None:
    """Rows begin behind final answers and nowhere else: there <|return|> becomes <|end|>, and analysis goes."""
    said = read(safe(seed))
    finals = sum(m["role"] == "assistant" and "tool_calls" not in m for m in said.messages)
    rows = rows_of(render, said, "all")
    assert len(rows) == finals + ("tool_calls" in said.messages[-1])
    assert all(steps_in(fields_of(steps)) == steps for steps in rows)
    for former, later in pairwise(rows):
        assert not later[0][0].startswith("".join(map("".join, former)))


def test_the_library_alone_would_drop_what_is_to_be_learnt(encoding: Any) -> None:
    """Its default (0.0.8, `should_drop_analysis`) drops all analysis before the first final answer, that of it too."""
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1", "thinking": "easy"},
    ]
    said = read({"messages": messages})
    ((step,),) = rows_of(render, said, "last")
    library = encoding.render_conversation_for_training(conversation(messages, [], answer=True))
    thought = "<|channel|>analysis<|message|>easy<|end|><|start|>assistant"
    assert step[1] == thought + "<|channel|>final<|message|>1<|return|>"
    assert library == tokens_of(encoding, step[0] + step[1].removeprefix(thought))


@pytest.mark.parametrize("seed", CHATS)
def test_without_thinking_the_librarys_defaults_say_the_same(encoding: Any, seed: int) -> None:
    from openai_harmony import Role

    row = safe(seed)
    names = ("thinking", "reasoning_content", "reasoning")
    row["messages"] = [{k: v for k, v in m.items() if k not in names} for m in row["messages"]]
    tools = row.get("tools", [])
    ((step,),) = rows_of(render, read(row), "last")
    asked = conversation(row["messages"][:-1], tools)
    assert tokens_of(encoding, step[0]) == encoding.render_conversation_for_completion(asked, Role.ASSISTANT)
    whole = conversation(row["messages"], tools)
    assert tokens_of(encoding, "".join(step)) == encoding.render_conversation_for_training(whole)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LEAVES = TEXT | st.integers(-5, 10**6) | st.booleans() | st.sampled_from([0.5, 1.0, -2.25])
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2), max_leaves=4
)
NOTES = {
    "title": TEXT,
    "description": TEXT,
    "default": JSON,
    "nullable": st.booleans(),
    "examples": st.lists(LEAVES, max_size=2),
    "enum": st.lists(LEAVES, max_size=3),
}
KINDS = ["string", "number", "integer", "boolean", "null", "array", "object", "odd"]


def schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(TEXT, inner, max_size=3)
    return st.one_of(
        st.fixed_dictionaries({"type": st.sampled_from(KINDS)}, optional=NOTES | {"items": inner}),
        st.fixed_dictionaries({"type": st.lists(st.sampled_from(KINDS), max_size=2)}, optional=NOTES),
        st.fixed_dictionaries({"oneOf": st.lists(inner, max_size=3)}, optional=NOTES),
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": properties},
            optional=NOTES | {"required": st.lists(TEXT, max_size=2)},
        ),
        st.fixed_dictionaries(
            {}, optional={"anyOf": st.lists(inner, max_size=2), "oneOf": LEAVES, "type": LEAVES} | NOTES
        ),
    )


SCHEMAS = st.recursive(schemas(st.just({"type": "string"})), schemas, max_leaves=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@for_all(
    st.lists(
        st.tuples(st.none() | SCHEMAS, TEXT | st.sampled_from(["a\r\nb\n", "\n", "a\rb\n\n"])), min_size=1, max_size=2
    )
)
def test_tools_are_declared_as_the_library_does(encoding: Any, tools: list[tuple[Any, str]]) -> None:
    listed = [{"name": "f", "description": text, "parameters": schema} for schema, text in tools]
    from openai_harmony import Conversation

    theirs = encoding.decode(encoding.render_conversation(Conversation.from_messages(preamble(None, listed))))
    cleaned = read_conversation('[{"role": "user"}, {"role": "assistant", "content": "a"}]', json.dumps(listed)).tools
    assert theirs.split("<|start|>developer<|message|>")[1] == declare(cleaned) + "<|end|>"


def test_the_template_of_the_hub_has_two_line_breaks_more() -> None:
    server, template = routing_prompt(renderer(), INSTRUCTION), routing_prompt(renderer(None, "template"), INSTRUCTION)
    assert template.before == server.before.replace(INSTRUCTION, INSTRUCTION + "\n\n")
    assert chat_instruction(template) == INSTRUCTION + "\n\n"  # which a chat API renders as this prompt
    with pytest.raises(DataError, match="a chat API would render another prompt"):
        chat_instruction(Prompt("Route:\n", "\n"))
