"""A served model against the same model in transformers, through a real HTTP server."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common.errors import LaunchError
from data_prep.prepared import load_prepared
from evaluation.scoring import decode_labels
from evaluation.served_model import decode_by
from evaluation.systems import by_endpoint
from serving.endpoint import KEY, Endpoint, RefusedError
from tests.evaluation.conftest import LABELS, ticket_rows, write_prepared
from tests.serving.stand_in import StandIn, serving

COMPLETIONS = [label + "<|return|>" for label in LABELS]
PROMPTS = [row["input"] for row in ticket_rows(6, seed=2)]


@pytest.fixture(scope="module")
def stand_in(hf_folder: Path) -> Iterator[StandIn]:
    with serving(StandIn(hf_folder)) as server:
        yield server


@pytest.fixture(autouse=True)
def _well_mannered(stand_in: StandIn) -> None:
    stand_in.failures, stand_in.echoes, stand_in.constrains = 0, True, True
    stand_in.key = stand_in.refuses = None
    stand_in.requests.clear()


def test_scores_equal_those_of_transformers(stand_in: StandIn) -> None:
    expected = decode_labels(stand_in.logits, stand_in.tokenizer, PROMPTS, COMPLETIONS, batch_size=4)
    seen: list[int] = []
    found = decode_by(Endpoint(stand_in.url), stand_in.tokenizer, PROMPTS, COMPLETIONS, lambda at: seen.append(at.done))
    np.testing.assert_allclose(found.log_probabilities, expected.log_probabilities, atol=2e-5)
    np.testing.assert_array_equal(found.greedy, expected.greedy)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_a_busy_server_is_asked_again(stand_in: StandIn) -> None:
    endpoint = Endpoint(stand_in.url + "/v1", backoff=0.01)
    assert endpoint.model == stand_in.folder.name
    stand_in.failures = 2
    assert endpoint.choose(PROMPTS[0], LABELS).label in LABELS
    assert len(stand_in.requests) == 3
    stand_in.failures = 100
    with pytest.raises(LaunchError, match="cannot be reached"):
        endpoint.choose(PROMPTS[0], LABELS)


def test_the_answer_is_constrained_and_its_probability_is_that_of_its_tokens(stand_in: StandIn) -> None:
    choice = Endpoint(stand_in.url).choose(PROMPTS[1], LABELS)
    expected = decode_labels(stand_in.logits, stand_in.tokenizer, PROMPTS[1:2], COMPLETIONS, 1).log_probabilities[0]
    assert choice.log_probability == pytest.approx(expected[LABELS.index(choice.label)], abs=2e-5)
    body = stand_in.requests[-1]
    assert body["prompt"] == PROMPTS[1]
    assert body["structured_outputs"] == {"choice": LABELS}
    assert body["guided_choice"] == body["nvext"]["guided_choice"] == LABELS
    assert body["max_tokens"] == len("Human Resources") + 1
    stand_in.constrains = False
    with pytest.raises(RefusedError, match="is no label: its server constrains no answers"):
        Endpoint(stand_in.url).choose(PROMPTS[1], LABELS)


def test_without_prompt_logprobs_the_structured_answers_count(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.echoes = False
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


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.endpoint.RETRIES", 1)
    with pytest.raises(LaunchError, match="cannot be reached"):
        _ = Endpoint("http://127.0.0.1:9", backoff=0.01).model
