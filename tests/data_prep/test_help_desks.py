"""What help desks' interfaces and exports give: pages, objects inside of tickets, rich text, lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.columns import find_columns
from data_prep.options import PrepareOptions
from data_prep.sources import Damaged, Row, open_source


def tickets(path: Path, **options: Any) -> list[list[str]]:
    """Label, subject, body of each ticket."""
    source = open_source(path)
    columns = find_columns(source.columns, source.name, PrepareOptions(**options))
    names = [name for name in (columns.label, columns.subject, columns.body) if name]
    return [row.values for row in source.rows(names) if isinstance(row, Row)]


def write(folder: Path, value: Any, name: str = "t.json", **arguments: Any) -> Path:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False, **arguments), encoding="utf-8")
    return folder / name


ZENDESK = [
    {
        "id": number,
        "subject": f"s{number}",
        "description": f"d{number}",
        "group_id": number % 2,
        "via": {"channel": "email", "source": {"from": {"name": "n", "address": "a@example.com"}, "rel": None}},
        "custom_fields": [{"id": 36, "value": "network"}, {"id": 37, "value": None}],
        "tags": ["one", "two"],
    }
    for number in range(3)
]
GROUPS = [{"id": 0, "name": "Billing"}, {"id": 1, "name": "Access"}]
EXPECTED = [["Billing", "s0", "d0"], ["Access", "s1", "d1"], ["Billing", "s2", "d2"]]
PAGE = {"tickets": ZENDESK, "groups": GROUPS, "users": [{"id": 9, "name": "u"}], "next_page": None, "count": 3}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(("value", "times"), [(PAGE, 1), ([PAGE, PAGE], 2)])
def test_zendesks_pages_with_the_names_of_its_groups(tmp_path, value, times, indent):
    assert tickets(write(tmp_path, value, indent=indent)) == EXPECTED * times


def test_a_page_a_line_and_pages_one_after_the_other(tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(PAGE) + "\n" for _ in range(2)))
    assert tickets(tmp_path / "t.jsonl") == EXPECTED * 2
    (tmp_path / "t.json").write_text("\n".join(json.dumps(PAGE, indent=1) for _ in range(2)))
    assert tickets(tmp_path / "t.json") == EXPECTED * 2


def test_a_custom_field_is_a_column(tmp_path):
    assert [row[0] for row in tickets(write(tmp_path, PAGE), label="custom_fields.36")] == ["network"] * 3


JIRA_TEXT = {
    "type": "doc",
    "version": 1,
    "content": [
        {"type": "paragraph", "content": [
            {"type": "text", "text": "Hello "}, {"type": "mention", "attrs": {"text": "@a"}},
        ]},
        {"type": "bulletList", "content": [
            {"type": "listItem", "content": [{"type": "paragraph", "content": [{"type": "text", "text": "item"}]}]},
        ]},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("description", "body"), [("plain", "plain"), (JIRA_TEXT, "Hello @a\nitem"), (None, "")])
def test_jiras_issues(tmp_path, description, body):
    fields = {"summary": "s", "description": description, "components": [{"id": "1", "name": "Network"}],
              "project": {"key": "A", "name": "Project"}, "comment": {"comments": [{"body": "no"}]}}  # fmt: skip
    page = {"expand": "names,schema", "startAt": 0, "total": 1, "issues": [{"id": "7", "key": "A-1", "fields": fields}]}
    assert tickets(write(tmp_path, page)) == [['["Network"]', "s", body]]
    assert tickets(write(tmp_path, page), label="project") == [["Project", "s", body]]


@pytest.mark.parametrize("group", ["Network", {"display_value": "Network", "value": "a1", "link": "https://x.example"}])
@pytest.mark.parametrize("key", ["result", "records"])
def test_servicenows_records(tmp_path, key, group):
    ticket = {"number": "INC1", "short_description": "s", "description": "d", "assignment_group": group}
    assert tickets(write(tmp_path, {key: [ticket] * 2})) == [["Network", "s", "d"]] * 2


def test_freshdesks_lists(tmp_path):
    new = {
        "id": 1,
        "subject": "s",
        "description": "<div>d</div>",
        "description_text": "d",
        "type": "Question",
        "tags": [],
    }
    assert tickets(write(tmp_path, [new] * 2, indent=1), label="type") == [["Question", "s", "d"]] * 2
    old = {"helpdesk_ticket": {"display_id": 1, "subject": "s", "description": "d", "group_name": "Billing"}}
    assert tickets(write(tmp_path, [old] * 2)) == [["Billing", "s", "d"]] * 2


@pytest.mark.parametrize(
    ("heading", "label"),
    [
        ("Ticket ID,Subject,Status,Group,Description", "Group"),  # Freshdesk, Zendesk
        ("Issue key,Summary,Component/s,Component/s,Description", "Component/s"),  # Jira
        ("number,short_description,assignment_group,state,description", "assignment_group"),  # ServiceNow
        ("Number,Short description,Assignment group,State,Description", "Assignment group"),
        ("Case Number,Subject,Queue Name,Status,Description", "Queue Name"),  # Salesforce
    ],
)
def test_their_csv(tmp_path, heading, label):
    (tmp_path / "t.csv").write_text(f"{heading}\n1,a,b,c,d\n")
    source = open_source(tmp_path / "t.csv")
    assert find_columns(source.columns, "t", PrepareOptions()).label == label


@pytest.mark.parametrize(
    "value",
    [
        {"results": [{"id": 1, "properties": {"subject": "s", "content": "d", "queue": "Q"}}], "paging": {"next": {}}},
        {"hits": {"total": {"value": 1}, "hits": [{"_id": "1", "_source": {"title": "s", "body": "d", "queue": "Q"}}]}},
        {"data": {"tickets": [{"subject": "s", "body": "d", "queue": {"id": 3, "name": "Q"}}]}, "meta": {"page": 1}},
    ],
)  # fmt: skip
def test_other_wrappings(tmp_path, value):
    assert tickets(write(tmp_path, value)) == [["Q", "s", "d"]]


def test_a_tickets_own_lists_are_no_tickets(tmp_path):
    line = json.dumps({"problem": "it is broken", "queue": "Q", "comments": [{"body": "c1"}, {"body": "c2"}]})
    (tmp_path / "t.jsonl").write_text(f"{line}\n{line}\n")
    assert tickets(tmp_path / "t.jsonl", body="problem") == [["Q", "it is broken"]] * 2


@pytest.mark.parametrize("more", [{}, {"id": "7", "topic": "a b"}])
def test_the_turns_of_a_conversation_are_no_tickets(tmp_path: Path, more: dict[str, str]) -> None:
    turns = [{"role": "user", "content": "It is broken."}, {"role": "assistant", "content": "Ask Billing."}]
    text = "\n".join(json.dumps({**more, "messages": turns}) for _ in range(3))
    (tmp_path / "t.jsonl").write_text(text)
    source = open_source(tmp_path / "t.jsonl")
    columns = find_columns(source.columns, source.name, PrepareOptions())
    assert (columns.messages, columns.label) == ("messages", None)
    rows = [row for row in source.rows(["messages"]) if isinstance(row, Row)]
    assert [json.loads(row.values[0]) for row in rows] == [turns] * 3


def test_commas_too_many_and_lines_of_a_list(tmp_path):
    (tmp_path / "t.json").write_text('[\n {"body": "x, }", "queue": "Q",},\n {"body": "y", "queue": "R"},\n]')
    assert tickets(tmp_path / "t.json") == [["Q", "x, }"], ["R", "y"]]
    (tmp_path / "t.ndjson").write_text('{"body": "x,}", "queue": "Q"},\n{"body": "y", "queue": "R"},\n')
    assert tickets(tmp_path / "t.ndjson") == [["Q", "x,}"], ["R", "y"]]


def test_a_broken_ticket_of_a_list_costs_itself_and_a_cut_off_list_its_last(tmp_path):
    good = [json.dumps({"body": f"b{number}", "queue": "Q"}, indent=1) for number in range(4)]
    broken = '{"body": "no comma" "queue": "Q", "inner": {"a": [1, 2]}}'
    (tmp_path / "t.json").write_text("[" + ",\n".join([*good[:2], broken, *good[2:]])[:-6])
    rows = list(open_source(tmp_path / "t.json").rows(["body"]))
    assert [row.values[0] for row in rows if isinstance(row, Row)] == ["b0", "b1", "b2"]
    damaged = [row for row in rows if isinstance(row, Damaged)]
    assert [row.line for row in damaged] == [9, 14]
    assert damaged[0].reason == "not JSON (Expecting ',' delimiter)"


@pytest.mark.parametrize("content", ['{"tickets":' + "[" * 200_000, '{"a":' * 200_000, "[" * 200_000 + "]" * 200_000])
def test_deep_json_is_refused(tmp_path, content):
    from common.errors import DataError

    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError, match="holds no JSON objects"):
        open_source(tmp_path / "t.json")


def test_a_page_longer_than_is_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.readers.json_text.WHOLE", 1000)
    monkeypatch.setattr("data_prep.readers.json_text.BLOCK", 100)
    many = {"meta": {"a": 1}, "users": [{"id": 1, "name": "n"}], "count": 100,
            "tickets": [{"subject": f"s{n}", "body": "b", "queue": "Q"} for n in range(100)]}  # fmt: skip
    rows = tickets(write(tmp_path, many))
    assert [row[1] for row in rows if row[1]] == [f"s{number}" for number in range(100)]
