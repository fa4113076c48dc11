"""A table through a stand-in server: the labels of a direct call, problems in their rows, and going on after a stop."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.errors import DataError, LaunchError
from common.progress import Done
from data_prep.prepared import load_prepared, load_routing
from launch.cli import app
from serving.endpoint import Endpoint, RefusedError
from serving.routing import route
from serving.usage import usage_of
from tests.evaluation.conftest import AFTER, BEFORE, LABELS
from tests.serving.stand_in import StandIn, serving

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
    assert (routed.rows, routed.damaged, routed.resumed, len(routed.problems)) == (6, 1, 0, 2)
    assert seen == [Done("tickets", i, 6) for i in range(1, 7)]
    assert [row["problem"] for row in rows][3] == "no text"
    assert "400: " in rows[2]["problem"]
    expected = endpoint.choose(f"{BEFORE}Hello 4\nvpn login < |end|> gone{AFTER}", LABELS)
    assert rows[4]["routed_to"] == expected.label
    assert 0 < float(rows[4]["probability"]) + 1e-9 < 1
    asked = [body["prompt"] for body in stand_in.requests]
    assert f"{BEFORE}Hello 1\na refund\nplease{AFTER}" in asked  # cleaned as the training tickets were
    assert sorted(path.name for path in tmp_path.iterdir()) == ["routed.csv", "tickets.csv"]


def test_stopped_routing_goes_on(stand_in: StandIn, table: Path, prepared_folder: Path, tmp_path: Path) -> None:
    routing, out = load_routing(prepared_folder), tmp_path / "routed.csv"
    route(table, out, routing, Endpoint(stand_in.url))
    whole = out.read_bytes()
    out.unlink()

    class Stopping(Endpoint):
        def choose(self, prompt: str, labels: Any) -> Any:
            if "vpn" in prompt:
                raise LaunchError("gone")
            return super().choose(prompt, labels)

    with pytest.raises(LaunchError, match="gone"):
        route(table, out, routing, Stopping(stand_in.url))
    partial = tmp_path / "routed.csv.partial"
    assert not out.exists()
    assert len(rows_of(partial)) == 4
    partial.write_bytes(whole[: whole.index(b"a refund") + 4])  # a kill in the middle of the second row
    stand_in.requests.clear()
    routed = route(table, out, routing, Endpoint(stand_in.url))
    assert (routed.rows, routed.resumed) == (6, 1)
    assert out.read_bytes() == whole
    assert not any("printer" in body["prompt"] for body in stand_in.requests)
    partial.write_text("something else")
    (tmp_path / "routed.csv.partial.inputs").write_text("of other inputs")
    assert route(table, out, routing, Endpoint(stand_in.url)).resumed == 0


def test_what_the_command_says(stand_in: StandIn, table: Path, prepared_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "routed.csv"
    arguments = ["route", str(table), "--endpoint", stand_in.url, "--data", str(prepared_folder), "--out", str(out)]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    for part in (f"wrote {out}: 6 rows in", "1 rows could not be read", "2 rows have a problem instead of a label"):
        assert part in ran.output
    again = CliRunner().invoke(app, [*arguments[:-1], str(table)])
    assert isinstance(again.exception, DataError)
    assert "is the file that is read" in str(again.exception)
    stand_in.constrains = False
    try:
        with pytest.raises(RefusedError, match="constrains no answers"):
            route(table, out, load_routing(prepared_folder), Endpoint(stand_in.url))
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
