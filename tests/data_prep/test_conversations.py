"""Conversations through `prepare`: what is read of them, what is dropped and why, and which rows they become."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import DataError
from data_prep.cleaning import Cleaner
from data_prep.conversations import LeftOutError, read_conversation
from data_prep.harmony import escape_control_tokens, render
from data_prep.intake import clean_turns
from data_prep.options import PrepareOptions
from data_prep.preparation import prepare
from data_prep.prepare_report import PrepareReport
from data_prep.row_format import steps_in, tokens_and_loss
from data_prep.splitting import SPLITS
from data_prep.turns import rows_of
from tests.data_prep.generated_chats import chat

CHATML = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ONE_CALL = CHATML.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
WITHOUT_TOOLS = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
USER = {"role": "user", "content": "Where is 7?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"n": 7}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "there"}
ANSWER = {"role": "assistant", "content": "There."}
TOOL = {
    "name": "find",
    "description": "Finds.",
    "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
}


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def written(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {s: [json.loads(line) for line in (folder / f"{s}.jsonl").read_text().splitlines()] for s in SPLITS}


def accounts(report: PrepareReport, folder: Path) -> None:
    rows = written(folder)
    assert report.splits == {split: len(of_split) for split, of_split in rows.items()}
    assert report.rows == sum(report.splits.values()) - report.further_rows + sum(report.dropped.values())


def steps(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, loss: Any = "all") -> Any:
    return rows_of(render, read_conversation(json.dumps(messages), json.dumps(tools)), loss)


def test_a_call_its_result_and_the_answer_are_one_row():
    ((called, answered),) = steps([USER, CALLING | {"thinking": "hm"}, RESULT, ANSWER | {"reasoning": "ok"}], [TOOL])
    assert called[0].endswith(
        "Channel must be included for every message.\n"
        "Calls to these tools must go to the commentary channel: 'functions'.<|end|>"
        "<|start|>developer<|message|># Tools\n\n## functions\n\nnamespace functions {\n\n// Finds.\n"
        "type find = (_: {\nn?: number,\n}) => any;\n\n} // namespace functions<|end|>"
        "<|start|>user<|message|>Where is 7?<|end|><|start|>assistant"
    )
    assert called[1] == (
        "<|channel|>analysis<|message|>hm<|end|>"
        '<|start|>assistant to=functions.find<|channel|>commentary json<|message|>{"n": 7}<|call|>'
    )
    assert answered == (
        "<|start|>functions.find to=assistant<|channel|>commentary<|message|>there<|end|><|start|>assistant",
        "<|channel|>analysis<|message|>ok<|end|><|start|>assistant<|channel|>final<|message|>There.<|return|>",
    )


def test_an_answer_behind_an_answer_is_a_row_of_its_own_without_the_former_thinking():
    said = [USER, ANSWER | {"thinking": "hm"}, {"role": "user", "content": "Sure?"}, ANSWER | {"content": "Yes."}]
    first, second = steps(said)
    assert first[0][1].endswith("There.<|return|>")
    ((prompt, answer),) = second
    assert prompt.endswith(
        "<|start|>user<|message|>Where is 7?<|end|><|start|>assistant<|channel|>final<|message|>There.<|end|>"
        "<|start|>user<|message|>Sure?<|end|><|start|>assistant"
    )
    assert answer == "<|channel|>final<|message|>Yes.<|return|>"
    assert steps(said, loss="last") == [second]
    assert steps([USER, ANSWER | {"weight": 0}, *said[2:]]) == [second]
    with pytest.raises(LeftOutError, match="without a turn to learn from"):
        steps([USER, ANSWER | {"weight": 0}])


@pytest.mark.parametrize(
    ("calling", "result"),
    [
        (CALLING, RESULT),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"function": CALL["function"]}]},
            {"role": "tool", "content": "there"},
        ),
        ({"role": "assistant", "tool_calls": [CALL]}, RESULT | {"content": [{"type": "text", "text": "there"}]}),
        (
            {"role": "assistant", "function_call": CALL["function"]},
            {"role": "function", "name": "find", "content": "there"},
        ),
        (CALLING, {"role": "tool", "name": "functions.find", "content": "there"}),
    ],
)
def test_spellings_of_one_conversation(calling, result):
    assert steps([USER, calling, result, ANSWER], [TOOL]) == steps([USER, CALLING, RESULT, ANSWER], [TOOL])


def test_results_without_ids_answer_the_calls_in_their_order_and_values_are_json():
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("find", "count")]
    results = [{"role": "tool", "content": {"at": ["ü", 7]}}, {"role": "tool", "content": [1]}]
    ((_, answered),) = steps([USER, {"role": "assistant", "tool_calls": calls}, *results, ANSWER])
    assert answered[0] == (
        '<|start|>functions.find to=assistant<|channel|>commentary<|message|>{"at": ["ü", 7]}<|end|>'
        "<|start|>functions.count to=assistant<|channel|>commentary<|message|>[1]<|end|><|start|>assistant"
    )


def test_arguments_as_an_object_are_written_as_the_model_writes_them():
    call = {"function": {"name": "find", "arguments": {"n": 7, "text": "ü"}}}
    ((called, _),) = steps([USER, CALLING | {"tool_calls": [call]}, RESULT | {"tool_call_id": None}, ANSWER])
    assert called[1].endswith('json<|message|>{"n":7,"text":"ü"}<|call|>')


BAD: dict[str, dict[str, Any]] = {
    "without a conversation that ends in an answer": {"messages": [USER]},
    "without a turn of the user": {"messages": [ANSWER]},
    "with a turn of an unknown role": {"messages": [{"role": "human", "content": "a"}, ANSWER]},
    "with a turn that is not text": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER]
    },
    "with a turn of the assistant that says nothing": {"messages": [USER, {"role": "assistant", "thinking": "hm"}]},
    "with a tool call that names no function": {"messages": [USER, CALLING | {"tool_calls": [{"id": "1"}]}]},
    "with a tool call whose arguments are no JSON object": {
        "messages": [USER, CALLING | {"tool_calls": [{"function": {"name": "find", "arguments": "{"}}]}]
    },
    "with a tool result that answers no call": {"messages": [USER, RESULT, ANSWER]},
    "with tools that are no list of function schemas": {"messages": [USER, ANSWER], "tools": [{"type": "web_search"}]},
}


def test_what_cannot_be_trained_on_is_counted_by_its_reason(tmp_path):
    odd: list[Any] = [
        {"messages": None},
        {"messages": "{"},
        {"messages": [1]},
        {"messages": {"a": 1}},
        {"messages": []},
    ]
    lone = {"messages": [{"role": "user", "content": "half \ud83d of a pair"}, ANSWER]}
    good = [{"messages": [USER | {"content": f"Where is {n} of w{n * 7}?"}, ANSWER]} for n in range(40)]
    report = prepare(write(tmp_path / "t.jsonl", [*good, lone, *BAD.values(), *odd]), tmp_path / "out")
    accounts(report, tmp_path / "out")
    assert report.dropped == dict.fromkeys(BAD, 1) | {"without a conversation that ends in an answer": 6}
    assert sum(report.splits.values()) == 41
    assert "half \ufffd of a pair" in {row["ticket"] for rows in written(tmp_path / "out").values() for row in rows}


@pytest.mark.parametrize("key", ["tools", "messages", "role", "function", "name", "arguments", "content", "tool_calls"])
@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [1], [None], {"a": 1}, [[]], True, "\ud83d", [{"name": 1}]])
def test_nothing_that_may_stand_anywhere_is_a_traceback(key, value):
    row: dict[str, Any] = {
        "messages": [USER, CALLING, RESULT, ANSWER],
        "tools": [{"type": "function", "function": TOOL}],
    }

    def changed(each: Any) -> Any:
        if isinstance(each, dict):
            return {name: value if name == key else changed(inner) for name, inner in each.items()}
        return [changed(inner) for inner in each] if isinstance(each, list) else each

    said = changed(row)
    try:
        conversation = read_conversation(json.dumps(said["messages"]), json.dumps(said["tools"]))
    except LeftOutError as reason:
        said = str(reason)
    else:
        assert all(json.dumps(each, ensure_ascii=False).encode() for each in rows_of(render, conversation, "all"))
        return
    assert said.startswith("with")


@pytest.fixture
def chats(tmp_path) -> Path:
    """A hundred generated conversations, the first ten twice."""
    return write(tmp_path / "t.jsonl", [chat(seed) for seed in (*range(100), *range(10))])


@pytest.mark.parametrize("size", [None, 4096])
def test_every_turn_through_prepare(tmp_path, chats, tokenizer, tokenizer_folder, size):
    options = PrepareOptions(tokenizer=str(tokenizer_folder), loss="all", max_length=4096, pack=size, near_duplicates=1)
    report = prepare(chats, tmp_path / "out", options)
    accounts(report, tmp_path / "out")
    assert report.dropped == {"exact duplicates": 10}
    assert json.loads((tmp_path / "out" / "labels.json").read_text())["labels"] == []
    assert json.loads((tmp_path / "out" / "report.json").read_text())["options"]["loss"] == "all"
    assert "further turns of conversations" in (tmp_path / "out" / "report.html").read_text()
    rows = written(tmp_path / "out")
    splits_of = defaultdict(set)
    for split, of_split in rows.items():
        for row in of_split:
            splits_of[row["id"]].add(split)
    assert len(splits_of) == 100
    assert {len(splits) for splits in splits_of.values()} == {1}, "a conversation stands in one split"
    learnt = Counter(answer for of_split in rows.values() for row in of_split for _, answer in steps_in(row))
    expected = Counter[str]()
    for seed in range(100):
        said = read_conversation(json.dumps(chat(seed)["messages"]), json.dumps(chat(seed).get("tools")))
        expected.update(answer for row in rows_of(render, cleaned(said), "all") for _, answer in row)
    assert learnt == expected
    assert report.further_rows == sum(report.splits.values()) - 100
    lengths = [len(tokens_and_loss(row, lambda text: tokenizer.encode(text))[0]) for row in rows["training"]]
    assert report.lengths["training"]["tokens"] == sum(lengths)
    if size:
        packed = np.load(tmp_path / "out" / "packed" / f"training_{size}.npy", allow_pickle=True)
        found = Counter(part for sequence in packed for part in answers(tokenizer, sequence))
        assert found == Counter("".join(answer for _, answer in steps_in(row)) for row in rows["training"])


def cleaned(said: Any) -> Any:
    """As `prepare` gives it to the model: without what no writer means, nothing a control token."""
    clean_turns(said, Cleaner())
    assert all(unicodedata.is_normalized("NFC", message["content"]) for message in said.messages)
    return said.mapped(escape_control_tokens)


def answers(tokenizer: Any, sequence: dict[str, Any]) -> list[str]:
    """What is learnt of each row in a packed sequence."""
    ids, mask, starts = sequence["input_ids"], sequence["loss_mask"], sequence["seq_start_id"]
    return [
        tokenizer.decode([ids[place + 1] for place in range(start, end) if mask[place]])
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)
    ]


def test_the_last_turn_is_the_default(tmp_path, chats):
    report = prepare(chats, tmp_path / "out", PrepareOptions(near_duplicates=1))
    accounts(report, tmp_path / "out")
    assert report.further_rows == 0
    assert sum(report.splits.values()) == 100
    assert {len(steps_in(row)) for rows in written(tmp_path / "out").values() for row in rows} == {1}


def test_turns_that_do_not_fit_are_left_out_from_the_end(tmp_path, tokenizer, tokenizer_folder):
    said = []
    for n in range(60):
        calls = [CALLING, RESULT | {"content": f"there w{n} " * 40}] * 4
        said.append({"messages": [USER | {"content": f"Where is {n} of w{n * 7}?"}, *calls, ANSWER], "tools": [TOOL]})
    options = PrepareOptions(tokenizer=str(tokenizer_folder), loss="all", max_length=900)
    report = prepare(write(tmp_path / "t.jsonl", said), tmp_path / "out", options)
    accounts(report, tmp_path / "out")
    assert report.cut_tickets == 60
    for row in written(tmp_path / "out")["training"]:
        assert 1 <= len(steps_in(row)) < 5
        assert row["output"].endswith("<|call|>")
        assert len(tokens_and_loss(row, tokenizer.encode)[0]) <= 900
    with pytest.raises(
        DataError, match=r"training split is empty, with 0 tickets before it \(48 longer than max_length\)"
    ):
        prepare(
            tmp_path / "t.jsonl", tmp_path / "none", PrepareOptions(tokenizer=str(tokenizer_folder), max_length=100)
        )


@pytest.fixture
def foreign(tmp_path, tokenizer):
    """A function that gives a tokenizer without harmony's tokens a template, and returns its folder."""
    from tokenizers import AddedToken, models

    from data_prep.toy_tokenizer import byte_level

    def made(template: str) -> str:
        from tokenizers import pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        plain = byte_level(models.BPE({c: n for n, c in enumerate(alphabet)}, []), r"\s+")
        plain.add_special_tokens(
            [AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>", "[INST]")]
        )
        fast = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>", chat_template=template)
        fast.save_pretrained(tmp_path / "foreign")
        return str(tmp_path / "foreign")

    return made


def tool_chats(count: int = 40, calls: int = 1) -> list[dict[str, Any]]:
    several = [CALL | {"id": f"c{n + 1}"} for n in range(calls)]
    results = [RESULT | {"tool_call_id": each["id"]} for each in several]
    return [
        {
            "messages": [
                USER | {"content": f"[INST] {n} of w{n * 7}?"},
                CALLING | {"tool_calls": several},
                *results,
                ANSWER,
            ],
            "tools": [TOOL],
        }
        for n in range(count)
    ]


def test_another_models_template_renders_tools_too(tmp_path, foreign):
    source = write(tmp_path / "t.jsonl", tool_chats())
    report = prepare(source, tmp_path / "out", PrepareOptions(tokenizer=foreign(CHATML), loss="all"))
    accounts(report, tmp_path / "out")
    assert report.further_rows == 0, "a template that changes nothing behind itself makes one row of a conversation"
    row = written(tmp_path / "out")["training"][0]
    (prompt, called), (result, answer) = steps_in(row)
    assert prompt.startswith('<|im_start|>system\nTools: [{"type": "function", "function": {"name": "find"')
    assert "[INST]" not in prompt
    assert called == 'None<tool_call>{"name": "find", "arguments": {"n": 7}}</tool_call><|im_end|>\n'.replace(
        "None", ""
    )
    assert result == "<|im_start|>tool\nthere<|im_end|>\n<|im_start|>assistant\n"
    assert answer == "There.<|im_end|>\n"


def test_a_template_that_does_not_show_tools_is_refused(tmp_path, foreign):
    source = write(tmp_path / "t.jsonl", tool_chats())
    with pytest.raises(DataError, match="chat template does not show tools, their calls and results: name a tokenizer"):
        prepare(source, tmp_path / "out", PrepareOptions(tokenizer=foreign(WITHOUT_TOOLS)))
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="without --rendering template"):
        prepare(source, tmp_path / "out", PrepareOptions(rendering="template"))


def test_calls_that_a_template_does_not_show_are_counted(tmp_path, foreign):
    source = write(tmp_path / "t.jsonl", [*tool_chats(), *tool_chats(50, calls=2)[40:]])
    report = prepare(source, tmp_path / "out", PrepareOptions(tokenizer=foreign(ONE_CALL)))
    assert report.dropped == {"with several calls in one turn, which the chat template does not show": 10}
    accounts(report, tmp_path / "out")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% if '] 1' in messages[0].content %}{{ raise_exception('no ones') }}{% endif %}" + CHATML,
            r"refuses \(no ones",
        ),
        (CHATML.replace("{{ m.content }}", "{{ m.content | replace('w7?', '') }}"), "does not show whole"),
        (
            CHATML.replace(
                "{% if add_gen", "{% if '1 of' in messages[0].content %}{{ messages | length }}{% endif %}{% if add_gen"
            ),
            "renders a turn otherwise than its prompt",
        ),
    ],
)
def test_what_a_template_refuses_is_counted(tmp_path, foreign, template, reason):
    source = write(tmp_path / "t.jsonl", tool_chats())
    report = prepare(source, tmp_path / "out", PrepareOptions(tokenizer=foreign(template)))
    ((said, count),) = report.dropped.items()
    assert re.search(reason, said)
    assert 1 <= count < 15
    accounts(report, tmp_path / "out")


def test_parquet_fills_in_no_members(tmp_path):
    """Arrow gives every object the members of all: a schema and a call have only their own."""
    other = {
        "name": "other",
        "description": None,
        "parameters": {"type": "object", "properties": {"m": {"type": "string"}}},
    }
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"n": 7}}}
    more = {"id": "c2", "type": "function", "function": {"name": "other", "arguments": {"m": "x"}}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Where is {n} of w{n * 7}?"},
                {"role": "assistant", "tool_calls": [call, more]},
            ],
            "tools": [TOOL, other],
        }
        for n in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    write(tmp_path / "t.jsonl", rows)
    for kind in ("parquet", "jsonl"):
        prepare(tmp_path / f"t.{kind}", tmp_path / kind)
    assert written(tmp_path / "parquet") == written(tmp_path / "jsonl")
    row = written(tmp_path / "parquet")["training"][0]
    assert 'json<|message|>{"n":7}<|call|>' in row["output"]
    assert "type find = (_: {\nn?: number,\n}) => any;" in row["input"]


def test_a_file_that_is_one_list_and_bare_schemas_keep_what_they_are(tmp_path):
    """Help desks' JSON has lists of named objects too: of those the names are taken."""
    (tmp_path / "t.json").write_text(json.dumps(tool_chats(), indent=1))
    report = prepare(tmp_path / "t.json", tmp_path / "out")
    assert report.dropped == {}
    assert all("// Finds.\ntype find" in row["input"] for row in written(tmp_path / "out")["training"])


def test_tools_that_nobody_declares_are_said(tmp_path):
    source = write(tmp_path / "t.jsonl", [{"messages": row["messages"]} for row in tool_chats()])
    report = prepare(source, tmp_path / "out")
    assert report.remarks[-1] == "40 conversations call tools but no column `tools` declares any, as a server would."
