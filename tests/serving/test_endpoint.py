"""A served model against the same model in transformers, through a real HTTP server."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import ConfigurationError, LaunchError
from data_prep.prepared import load_prepared
from evaluation.scoring import decode_labels
from evaluation.served_model import decode_by
from evaluation.systems import by_endpoint
from serving.connection import KEY, RETRIES, NoAnswerError
from serving.constraints import CONSTRAINTS
from serving.endpoint import Endpoint, NoLabelError
from tests.evaluation.conftest import LABELS, ticket_rows, write_prepared
from tests.serving.stand_in import StandIn, answering, serving

COMPLETIONS = [label + "<|return|>" for label in LABELS]
PROMPTS = [row["input"] for row in ticket_rows(6, seed=2)]


@pytest.fixture(scope="module")
def stand_in(hf_folder: Path) -> Iterator[StandIn]:
    with serving(StandIn(hf_folder)) as server:
        yield server


@pytest.fixture(autouse=True)
def _well_mannered(stand_in: StandIn) -> None:
    stand_in.failures, stand_in.echoes, stand_in.chooses, stand_in.constrains = 0, True, True, True
    stand_in.constraint = "structured_outputs"
    stand_in.key = stand_in.refuses = None
    stand_in.requests.clear()


@pytest.mark.parametrize("chooses", [True, False], ids=["chosen tokens", "echo"])
def test_scores_equal_those_of_transformers(stand_in: StandIn, chooses: bool) -> None:
    stand_in.chooses = chooses
    expected = decode_labels(stand_in.logits, stand_in.tokenizer, PROMPTS, COMPLETIONS, batch_size=4)
    seen: list[int] = []
    with Endpoint(stand_in.url, concurrency=3) as endpoint:
        found = decode_by(endpoint, stand_in.tokenizer, PROMPTS, COMPLETIONS, lambda at: seen.append(at.done))
    np.testing.assert_allclose(found.log_probabilities, expected.log_probabilities, rtol=1e-6, atol=2e-5)
    np.testing.assert_array_equal(found.greedy, expected.greedy)
    assert seen == [1, 2, 3, 4, 5, 6]
    echoed = [bool(body.get("echo")) for body in stand_in.requests]
    assert sum(echoed) == (0 if chooses else 6)
    # a random model goes its own ways, which costs a second request; what a server does not know is asked once
    assert len(echoed) - sum(echoed) in (range(6, 13) if chooses else (1, 2, 3))


def test_a_busy_server_is_asked_again(stand_in: StandIn) -> None:
    endpoint = Endpoint(stand_in.url + "/v1", backoff=0.01)
    assert endpoint.model == stand_in.folder.name
    assert endpoint.choose(PROMPTS[0], LABELS).label in LABELS
    stand_in.requests.clear()
    stand_in.failures = 2
    assert endpoint.choose(PROMPTS[0], LABELS).label in LABELS
    assert len(stand_in.requests) == 3
    stand_in.failures = 100
    with pytest.raises(NoAnswerError, match="answers 503: loading"):
        endpoint.choose(PROMPTS[0], LABELS)
    assert stand_in.failures == 100 - 1 - RETRIES


def test_the_answer_is_constrained_and_its_probability_is_that_of_its_tokens(stand_in: StandIn) -> None:
    endpoint = Endpoint(stand_in.url)
    choice = endpoint.choose(PROMPTS[1], LABELS)
    expected = decode_labels(stand_in.logits, stand_in.tokenizer, PROMPTS[1:2], COMPLETIONS, 1).log_probabilities[0]
    assert choice.log_probability == pytest.approx(expected[LABELS.index(choice.label)], abs=2e-5)
    body = stand_in.requests[-1]
    assert body["prompt"] == PROMPTS[1]
    assert body["structured_outputs"] == {"choice": LABELS}
    assert body["max_tokens"] == len("Human Resources") + 1


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_what_the_server_obeys_is_found_out_once_and_nothing_else_is_sent(stand_in: StandIn, constraint: str) -> None:
    stand_in.constraint = constraint
    endpoint = Endpoint(stand_in.url)
    assert {endpoint.choose(prompt, LABELS).label for prompt in PROMPTS} <= set(LABELS)
    sent = [CONSTRAINTS.keys() & body.keys() for body in stand_in.requests]
    assert sent == [{name} for name in [*list(CONSTRAINTS)[: list(CONSTRAINTS).index(constraint)], constraint]] + [
        {constraint}
    ] * len(PROMPTS)


def test_a_server_that_obeys_nothing_may_answer_with_no_label(stand_in: StandIn) -> None:
    stand_in.constrains = False
    endpoint = Endpoint(stand_in.url)
    with pytest.raises(NoLabelError, match="is no label: the server constrains no answers"):
        endpoint.choose(PROMPTS[1], LABELS)
    assert endpoint.constraint(PROMPTS[1]) is None
    assert not CONSTRAINTS.keys() & stand_in.requests[-1].keys()


def test_without_prompt_logprobs_the_structured_answers_count(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.echoes = stand_in.chooses = False
    prepared = load_prepared(write_prepared(tmp_path / "data", test=4))
    (predictions,), notes = by_endpoint(stand_in.url, stand_in.folder, prepared, "test")
    endpoint = Endpoint(stand_in.url)
    found = by_endpoint(stand_in.url, stand_in.folder, prepared, "test")[0][predictions]
    assert found.answers == [endpoint.choose(ticket.input, LABELS).label for ticket in prepared.test]
    assert found.probabilities is None
    assert found.valid is not None
    assert found.valid.tolist() == [False] * 4  # a random model answers with no label
    assert "400" in notes[0]
    assert "no calibration" in notes[0]


def test_a_key_goes_by_its_environment_variable(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.key = "sesame"
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(LaunchError, match="OPENAI_API_KEY"):
        Endpoint(stand_in.url).choose(PROMPTS[0], LABELS)
    monkeypatch.setenv(KEY, "sesame")
    assert Endpoint(stand_in.url).choose(PROMPTS[0], LABELS).label in LABELS


def test_a_wrong_port_fails_in_seconds() -> None:
    started = time.perf_counter()
    with pytest.raises(LaunchError, match=r"127.0.0.1:9/v1 cannot be reached \(Connection refused\)"):
        _ = Endpoint("127.0.0.1:9").model
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("models", "wanted", "asked"),
    [
        ([{"id": "base"}], None, "base"),
        ([{"id": "base"}, {"id": "tuned", "parent": "base"}], None, "tuned"),
        ([{"id": "base"}, {"id": "tuned", "parent": "base"}], "base", "base"),
        ([{"id": "a", "root": "/m"}, {"id": "b", "root": "/m"}], None, "a"),  # two names of one model
        ([{"id": "a"}, {"id": "b"}], None, "serves several models: name one with --model, of a, b"),
        ([{"id": "a", "parent": "c"}, {"id": "b", "parent": "c"}], None, "serves several models"),
        ([{"id": "a"}], "b", "serves no model 'b': it serves a"),
        ([], None, "lists no model"),
        ({"id": "a"}, None, "without a list of models"),
        ([1], None, "without a list of models"),
        ([{"name": "a"}], None, "without a list of models"),
    ],
)
def test_which_model_is_asked(models: Any, wanted: str | None, asked: str) -> None:
    with answering(lambda path, body: {"data": models}) as url, Endpoint(url, model=wanted) as endpoint:
        if " " not in asked:
            assert endpoint.model == asked
            return
        with pytest.raises((LaunchError, ConfigurationError), match=asked):
            _ = endpoint.model
