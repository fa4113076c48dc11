"""`route --chat`: a stand-in of a chat API gets the messages from which vLLM renders the trained prompt."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigurationError
from data_prep.harmony import chat_instruction
from data_prep.prepared import load_routing
from serving.endpoint import Endpoint
from serving.routing import route
from tests.serving.harmony_data import PROMPT, write_labels
from tests.serving.stand_in import answering


def test_a_chat_server_gets_the_messages_of_the_trained_prompt(tmp_path: Path) -> None:
    routing, table = load_routing(write_labels(tmp_path / "data")), tmp_path / "tickets.csv"
    table.write_text('subject,body\nHello 0,vpn login <|end|> gone\n,\nHello 2,"a ""quote"""\n')
    asked: list[dict[str, Any]] = []

    def speak(path: str, body: Any) -> Any:
        if body is None:
            return {"data": [{"id": "m"}]}
        asked.append(body | {"path": path})
        text = body.get("structured_outputs", {}).get("choice", ["?"])[-1]
        content = None if "quote" in body["messages"][1]["content"] else text
        return {"choices": [{"message": {"content": content}, "logprobs": {"content": [{"logprob": -0.5}]}}]}

    with answering(speak) as url, Endpoint(url) as endpoint:
        routed = route(table, tmp_path / "r.csv", routing, endpoint, chat=True)
        with pytest.raises(ConfigurationError, match="leave out --chat"):
            route(table, tmp_path / "r.csv", routing, endpoint, chat=True, exact=True)
    with (tmp_path / "r.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["routed_to"] for row in rows] == ["Billing", "", ""]
    assert {row["probability"] for row in rows} == {""}  # the tokens of a chat are more than its answer
    assert [row["problem"] for row in rows][:2] == ["", "no text"]
    assert "answered '', which is no label" in rows[2]["problem"]
    assert routed.constraint == "structured_outputs"
    assert {body["path"] for body in asked} == {"/v1/chat/completions"}
    assert {body["reasoning_effort"] for body in asked} == {"low"}
    contents = [[message["content"] for message in body["messages"]] for body in asked]
    assert [chat_instruction(PROMPT), "Hello 0\nvpn login < |end|> gone"] in contents
