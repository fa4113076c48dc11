"""A table through a stand-in server: the labels of a direct call, problems in their rows, and going on after a stop."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from common.errors import DataError, LaunchError
from common.progress import Done
from data_prep.prepared import load_prepared, load_routing
from evaluation.scoring import decode_labels
from launch.cli import app
from serving.endpoint import Endpoint
from serving.routing import SAMPLE, route
from serving.usage import usage_of
from tests.evaluation.conftest import AFTER, BEFORE, LABELS
from tests.serving.stand_in import StandIn, answering, serving

BODIES = ["the printer,\nit burns", "a refund \\n please", "unspeakable", "", "vpn login <|end|> gone", 'a "quote"']


@pytest.fixture(scope="module")
def stand_in(hf_folder: Path) -> Iterator[StandIn]:
    with serving(StandIn(hf_folder, refuses="unspeakable")) as server:
        yield server


@pytest.fixture
def table(tmp_path: Path) -> Path:
    with (tmp_path / "tickets.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "subject", "body"])
        writer.writerows([str(i), "" if i == 3 else f"Hello {i}", body] for i, body in enumerate(BODIES))
        file.write("7,broken\n")
    return tmp_path / "tickets.csv"


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_every_row_gets_its_label_or_its_problem(
    stand_in: StandIn, table: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    seen: list[Done] = []
    endpoint, out = Endpoint(stand_in.url), tmp_path / "routed.csv"
    routed = route(table, out, load_routing(prepared_folder), endpoint, progress=seen.append)
    rows = rows_of(out)
    assert [row["body"] for row in rows] == BODIES
    assert (routed.rows, routed.damaged, routed.resumed, routed.problems, routed.labelled) == (6, 1, 0, 2, 4)
    assert [(at.step, at.done, at.total) for at in seen] == [("tickets", i, 6) for i in range(1, 7)]
    assert all(re.fullmatch(r"\d+\.\d a second", at.note) for at in seen)
    assert [row["problem"] for row in rows][3] == "no text"
    assert "400: " in rows[2]["problem"]
    expected = endpoint.choose(f"{BEFORE}Hello 4\nvpn login < |end|> gone{AFTER}", LABELS)
    assert rows[4]["routed_to"] == expected.label
    assert 0 < float(rows[4]["probability"]) + 1e-9 < 1
    asked = [body["prompt"] for body in stand_in.requests]
    assert f"{BEFORE}Hello 1\na refund\nplease{AFTER}" in asked  # cleaned as the training tickets were
    assert sorted(path.name for path in tmp_path.iterdir()) == ["routed.csv", "routed.csv.manifest.json", "tickets.csv"]
    inputs = json.loads((tmp_path / "routed.csv.manifest.json").read_text())["inputs"]
    assert (inputs["model"]["id"], inputs["constraint"]) == (stand_in.folder.name, "structured_outputs")
    assert inputs["prompt"] == [BEFORE, AFTER, "<|return|>"]


def test_stopped_routing_goes_on(stand_in: StandIn, table: Path, prepared_folder: Path, tmp_path: Path) -> None:
    routing, out = load_routing(prepared_folder), tmp_path / "routed.csv"
    route(table, out, routing, Endpoint(stand_in.url))
    whole = out.read_bytes()
    out.unlink()

    class Stopping(Endpoint):
        def choose(self, prompt: Any, labels: Any) -> Any:
            if "vpn" in prompt:
                raise LaunchError("gone.")
            return super().choose(prompt, labels)

    with pytest.raises(LaunchError, match=r"gone\. 4 rows are kept beside .*; the same command goes on from there"):
        route(table, out, routing, Stopping(stand_in.url))
    partial = tmp_path / "routed.csv.partial"
    assert not out.exists()
    assert len(rows_of(partial)) == 4
    partial.write_bytes(whole[: whole.index(b"a refund") + 4])  # a kill in the middle of the second row
    stand_in.requests.clear()
    routed = route(table, out, routing, Endpoint(stand_in.url))
    assert (routed.rows, routed.resumed) == (6, 1)
    assert out.read_bytes() == whole
    assert not any("Hello 0" in body["prompt"] for body in stand_in.requests)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"before": "<|start|>user<|message|>Now: "}, "prompt"),
        ({"skip": ["html"]}, "skip"),
        ({"exact": True}, "exact"),
        ({"first_tokens": [-0.1, -3.0]}, "model"),
        ({}, ""),
        ({"first_tokens": [-0.12, -2.5]}, ""),  # the rounding of the same weights in another batch
    ],
)
def test_what_was_routed_otherwise_is_asked_again(
    stand_in: StandIn,
    table: Path,
    prepared_folder: Path,
    tmp_path: Path,
    change: dict[str, Any],
    says: str,
) -> None:
    routing, out = load_routing(prepared_folder), tmp_path / "routed.csv"

    class Remembering(Endpoint):
        first_tokens = (-0.1, -2.5)

        def fingerprint(self, prompt: Any) -> list[float]:
            return list(self.first_tokens)

        def at_once(self, ask: Any, items: Any) -> Any:
            for number, each in enumerate(super().at_once(ask, items)):
                if number == 4 and "first_tokens" not in vars(self):
                    raise LaunchError("gone.")
                yield each

    with pytest.raises(LaunchError, match="4 rows are kept"):
        route(table, out, routing, Remembering(stand_in.url))
    second = Remembering(stand_in.url)
    second.first_tokens = tuple(change.pop("first_tokens", Remembering.first_tokens))
    exact = change.pop("exact", False)
    routed = route(table, out, replace(routing, **change), second, exact=exact)
    assert (routed.restarted, routed.resumed) == (says, 0 if says else 4)


def test_exact_takes_the_likeliest_whole_answer(
    stand_in: StandIn, table: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "routed.csv"
    routed = route(table, out, load_routing(prepared_folder), Endpoint(stand_in.url), exact=True)
    assert (routed.rows, routed.labelled, routed.constraint) == (6, 5, None)
    prompts = [f"{BEFORE}Hello 1\na refund\nplease{AFTER}", f'{BEFORE}Hello 5\na "quote"{AFTER}']
    completions = [label + "<|return|>" for label in LABELS]
    expected = decode_labels(stand_in.logits, stand_in.tokenizer, prompts, completions, 2)
    rows = rows_of(out)
    assert [rows[1]["routed_to"], rows[5]["routed_to"]] == [LABELS[best] for best in expected.best]
    probabilities = expected.probabilities.max(axis=1)
    assert [float(rows[i]["probability"]) for i in (1, 5)] == pytest.approx(probabilities, abs=1e-4)


def hostile(answer: Any) -> Any:
    """A server that obeys constraints; `answer` says what becomes of a ticket's prompt and its labels."""

    def speak(path: str, body: Any) -> Any:
        if body is None:
            return {"data": [{"id": "m"}]}
        choice = body.get("structured_outputs", {}).get("choice", ["x"])
        good = {"choices": [{"text": choice[0], "logprobs": {"token_logprobs": [-0.1]}}]}
        if len(choice) == 1 or SAMPLE in body["prompt"]:
            return good
        return answer(body["prompt"], choice, good)

    return answering(speak)


def test_a_row_that_is_not_answered_is_marked_and_nothing_else_is_lost(
    table: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    bad: dict[str, Any] = {
        "Hello 0": {"choices": [{"text": None}]},
        "Hello 1": (400, b'=HYPERLINK("http://evil")\r\nx,y\x1b[2J'),
        "Hello 4": {"choices": [{"text": "Sales", "logprobs": {"token_logprobs": [800.0]}}]},
        "Hello 5": {"choices": [{"text": "Nonsense\x1b[2J"}]},
    }

    def answer(prompt: str, choice: list[str], good: Any) -> Any:
        return next((said for name, said in bad.items() if name in prompt), good)

    with hostile(answer) as url, Endpoint(url) as endpoint:
        routed = route(table, tmp_path / "r.csv", load_routing(prepared_folder), endpoint)
    rows = rows_of(tmp_path / "r.csv")
    assert [row["routed_to"] for row in rows] == ["", "", "IT", "", "Sales", ""]
    assert (routed.rows, routed.labelled, routed.problems) == (6, 2, 5)
    assert "answers without text" in rows[0]["problem"]
    assert "answers 400: =HYPERLINK" in rows[1]["problem"]
    assert (rows[4]["probability"], "800.0, which is none" in rows[4]["problem"]) == ("", True)
    assert "is no label" in rows[5]["problem"]
    assert all(row["problem"].isprintable() and row["problem"][:1] not in "=+-@" for row in rows if row["problem"])


def test_a_server_that_breaks_in_the_middle_leaves_the_rows_before(prepared_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "tickets.csv"
    table.write_text("body\n" + "".join(f"ticket number {i:02d}\n" for i in range(30)))
    broken = True

    def answer(prompt: str, choice: list[str], good: Any) -> Any:
        number = int(re.findall(r"number (\d+)", prompt)[0])
        return {"choices": []} if broken and (number == 3 or number >= 12) else good

    routing, out = load_routing(prepared_folder), tmp_path / "r.csv"
    with hostile(answer) as url:
        with pytest.raises(LaunchError, match=r"8 rows one after the other: .*0 choices.* 12 rows are kept"):
            route(table, out, routing, Endpoint(url))
        broken = False
        routed = route(table, out, routing, Endpoint(url))
    assert (routed.resumed, routed.rows) == (12, 30)
    assert [row["body"] for row in rows_of(out)] == [f"ticket number {i:02d}" for i in range(30)]
    assert [i for i, row in enumerate(rows_of(out)) if not row["routed_to"]] == [3]


def test_tickets_with_lone_returns_and_formulas(stand_in: StandIn, prepared_folder: Path, tmp_path: Path) -> None:
    """A column of the source that has one of our names keeps it."""
    table = tmp_path / "tickets.jsonl"
    bodies = ["hello\rforged", "=1+1", "-", "+49 170 1234567", "-12.5", "'=quoted", "new\nline", "null\0sign"]
    table.write_text("".join(json.dumps({"subject": "s", "body": body, "problem": "old"}) + "\n" for body in bodies))
    for escape in (True, False):
        out = tmp_path / f"{escape}.csv"
        route(table, out, load_routing(prepared_folder), Endpoint(stand_in.url), escape=escape)
        frame = pd.read_csv(out, dtype=str, keep_default_na=False)
        assert list(frame.columns) == ["subject", "body", "problem", "routed_to", "probability", "problem_2"]
        assert frame.body.tolist() == [row["body"] for row in rows_of(out)]
        marked = {"=1+1", "-", "+49 170 1234567", "'=quoted"} if escape else set()
        assert frame.body.tolist() == [f"'{body}" if body in marked else body.replace("\0", "") for body in bodies]
        assert set(frame.problem) == {"old"}
        assert all(frame.routed_to)


def test_a_table_in_an_archive(stand_in: StandIn, table: Path, prepared_folder: Path, tmp_path: Path) -> None:
    archive, out = tmp_path / "export.zip", tmp_path / "routed.csv"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(table, "old/tickets.csv")
        packed.writestr("new.csv", "body\nhello\n")
    assert route(archive / "old/tickets.csv", out, load_routing(prepared_folder), Endpoint(stand_in.url)).rows == 6
    assert route(archive / "new.csv", out, load_routing(prepared_folder), Endpoint(stand_in.url)).rows == 1
    assert [row["body"] for row in rows_of(out)] == ["hello"]


def test_what_the_command_says(stand_in: StandIn, table: Path, prepared_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "routed.csv"
    arguments = ["route", str(table), "--endpoint", stand_in.url, "--data", str(prepared_folder), "--out", str(out)]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    asked = f"asked {stand_in.folder.name} at {stand_in.url}/v1, constrained by structured_outputs"
    for part in (asked, f"wrote {out}: 6 rows in", "1 rows could not be read", "2 rows have a problem, such as"):
        assert part in ran.output
    again = CliRunner().invoke(app, [*arguments[:-1], str(table)])
    assert isinstance(again.exception, DataError)
    assert "is the file that is read" in str(again.exception)
    stand_in.constrains = False
    try:
        ran = CliRunner().invoke(app, arguments)
        assert "which obeys no constraint to the labels" in ran.output
        assert isinstance(ran.exception, LaunchError)
        assert "no row of" in str(ran.exception)
        assert len(rows_of(out)) == 6
    finally:
        stand_in.constrains = True


def test_the_code_of_the_model_card_routes_as_the_server_does(
    hf_folder: Path, prepared_folder: Path, stand_in: StandIn
) -> None:
    """The card's Python is run as it stands; like the server it takes the best token that leads to a label."""
    card = usage_of(prepared_folder)
    code = card[card.index("```python\n") + 10 :].split("```")[0].replace("FOLDER", str(hf_folder))
    space: dict[str, Any] = {}
    exec(code, space)
    ticket = load_prepared(prepared_folder).test[2]
    assert space["route"](ticket.text) == Endpoint(stand_in.url).choose(ticket.input, LABELS).label
    assert f"```text\n{BEFORE}TICKET{AFTER}\n```" in card
    assert '"structured_outputs"' in card
