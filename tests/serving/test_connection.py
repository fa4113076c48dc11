"""A server that is not believed: slow, endless, damaged, or full of control characters."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest

from common.errors import ConfigurationError, LaunchError
from serving.address import parse_address
from serving.connection import KEY, LARGEST, Connection, NoAnswerError, RefusedError
from serving.endpoint import Endpoint, NoLabelError
from tests.serving.stand_in import answering

LABELS = ["Billing", "Sales"]


@contextmanager
def speaking(speak: Callable[[socket.socket, Event], None], heard: list[bytes] | None = None) -> Iterator[str]:
    """A server that writes to each socket what it likes, and keeps what it heard."""
    stop = Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)

    def handle(client: socket.socket) -> None:
        with client:
            request = client.recv(65536)
            if heard is not None:
                heard.append(request)
            try:
                speak(client, stop)
            except OSError:
                pass

    def accept() -> None:
        while not stop.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            Thread(target=handle, args=(client,), daemon=True).start()

    thread = Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        thread.join()
        listener.close()


def drip(beginning: bytes) -> Callable[[socket.socket, Event], None]:
    def speak(client: socket.socket, stop: Event) -> None:
        client.sendall(beginning)
        while not stop.wait(0.1):
            client.sendall(b" ")

    return speak


@pytest.mark.parametrize(
    "beginning",
    [b"", b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"],
    ids=["status", "header", "body"],
)
def test_a_byte_at_a_time_ends_at_the_deadline(beginning: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.endpoint.SECONDS", 0.5)
    started = time.perf_counter()
    with (
        speaking(drip(beginning)) as url,
        Endpoint(url) as endpoint,
        pytest.raises(LaunchError, match=r"cannot be reached|no whole answer|answers"),
    ):
        _ = endpoint.model
    assert time.perf_counter() - started < 4


def test_an_endless_answer_is_cut_off() -> None:
    sent = 0

    def endless(client: socket.socket, stop: Event) -> None:
        nonlocal sent
        client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not stop.is_set():
            client.sendall(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
            sent += 0x100000

    with speaking(endless) as url, Endpoint(url) as endpoint, pytest.raises(NoAnswerError, match=r"more than 67\.1 MB"):
        _ = endpoint.model
    assert sent < 1.5 * LARGEST


def test_a_compressed_answer_is_not_unpacked() -> None:
    packed = gzip.compress(b" " * 2**24)

    def speak(client: socket.socket, stop: Event) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
        client.sendall(head.encode() + packed)

    with speaking(speak) as url, Endpoint(url) as endpoint, pytest.raises(NoAnswerError, match="answers no JSON"):
        _ = endpoint.model


def test_a_request_that_took_all_its_time_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.endpoint.SECONDS", 0.5)
    asked: list[Any] = []
    stop = Event()

    def answer(path: str, body: Any) -> Any:
        if body is None:
            return {"data": [{"id": "m"}]}
        asked.append(body)
        stop.wait(5)
        return {}

    with answering(answer) as url, Endpoint(url) as endpoint, pytest.raises(NoAnswerError, match=r"within 0\.5 s"):
        endpoint.choose("Hello", LABELS)
    stop.set()
    assert len(asked) == 1


def said(text: Any, logprobs: Any = None) -> dict[str, Any]:
    return {"choices": [{"text": text, "logprobs": logprobs}]}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "without choices"),
        ({"choices": "abc"}, "without choices"),
        ({"choices": [1]}, "without choices"),
        ([1], "without choices"),
        (None, "without choices"),
        ({"error": {"message": "bo\x1b[2Jom"}}, r"without choices \(.*bo.*om"),
        ({"choices": [{}]}, "without text"),
        (said(None), "without text"),
        (said(["Sales"]), "without text"),
        ({"choices": [{"text": "Sales", "index": "a"}]}, "numbers its choices wrongly"),
        ({"choices": [{"text": "Sales"}, {"text": "Sales"}]}, "2 choices where 1"),
        (b"[" * 200_000, "answers no JSON"),
        (b"\xff\xfe", "answers no JSON"),
        (b"1" * 100_000, "answers no JSON"),
        ((302, {}), "sends its callers elsewhere"),
        ((400, b'=HYPERLINK("x")\r\ny\x1b[2J\xe2\x80\xae'), "400: =HYPERLINK"),
    ],
)
def test_what_is_no_answer_is_one_printable_sentence(answer: Any, message: str) -> None:
    with answering(lambda path, body: {"data": [{"id": "m"}]} if body is None else answer) as url:
        with Endpoint(url) as endpoint, pytest.raises((NoAnswerError, RefusedError), match=message) as error:
            endpoint.choose("Hello", LABELS)
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "logprobs",
    [
        {"token_logprobs": [1e308]},
        {"token_logprobs": [800.0]},
        {"token_logprobs": [-1, None]},
        {"token_logprobs": [float("nan")]},
        {"token_logprobs": [float("-inf")]},
        {"token_logprobs": [True]},
        {"token_logprobs": "abc"},
        {"content": [1]},
        {"content": [{"logprob": "-1"}]},
        [1],
        "abc",
    ],
)
def test_a_label_stays_one_whatever_is_said_of_its_probability(logprobs: Any) -> None:
    def answer(path: str, body: Any) -> Any:
        return {"data": [{"id": "m"}]} if body is None else said(body["structured_outputs"]["choice"][0], logprobs)

    with answering(answer) as url, Endpoint(url) as endpoint:
        choice = endpoint.choose("Hello", LABELS)
    assert (choice.label, choice.log_probability) == ("Billing", None)
    assert "log-probabilit" in choice.doubt
    assert choice.doubt.isprintable()


@pytest.mark.parametrize(
    ("logprobs", "log_probability"),
    [
        ({"token_logprobs": [-0.5, -0.25]}, -0.75),
        ({"token_logprobs": [1e-6, -1]}, -1.0),
        ({"content": [{"logprob": -0.5}, {"logprob": -9999.0}]}, -9999.5),  # llama.cpp; vLLM's smallest
        ({"token_logprobs": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_log_probabilities_of_an_answer(logprobs: Any, log_probability: float | None) -> None:
    def answer(path: str, body: Any) -> Any:
        return {"data": [{"id": "m"}]} if body is None else said(body["structured_outputs"]["choice"][0], logprobs)

    with answering(answer) as url, Endpoint(url) as endpoint:
        choice = endpoint.choose("Hello", LABELS)
    assert (choice.log_probability, choice.doubt) == (log_probability, "")


def test_what_is_no_answer_may_be_one_the_next_time() -> None:
    bad = iter([said("Sales"), {"choices": [{}]}])

    def answer(path: str, body: Any) -> Any:
        if body is None:
            return {"data": [{"id": "m"}]}
        choice = body["structured_outputs"]["choice"]
        return said(choice[0]) if len(choice) == 1 else next(bad, said(choice[1]))

    with answering(answer) as url, Endpoint(url) as endpoint:
        assert [endpoint.choose("Hello", LABELS).label for _ in range(2)] == ["Sales", "Sales"]


def test_a_field_that_the_server_refuses_is_another_way_not_tried_further() -> None:
    def answer(path: str, body: Any) -> Any:
        if body is None:
            return {"data": [{"id": "m"}]}
        if "structured_outputs" in body:
            return 400, {"error": {"message": "extra fields not permitted: structured_outputs"}}
        return said(body["guided_choice"][-1])

    with answering(answer) as url, Endpoint(url) as endpoint:
        assert endpoint.constraint("Hello") == "guided_choice"
        assert endpoint.choose("Hello", LABELS).label == "Sales"


def test_a_server_that_refuses_everything_is_quoted() -> None:
    def answer(path: str, body: Any) -> Any:
        return {"data": [{"id": "m"}]} if body is None else (400, {"object": "error", "message": "no add_special"})

    with (
        answering(answer) as url,
        Endpoint(url) as endpoint,
        pytest.raises(RefusedError, match="completions answers 400: no add_special"),
    ):
        endpoint.constraint("Hello")


def test_query_and_login_go_with_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sesame")
    heard: list[bytes] = []

    def speak(client: socket.socket, stop: Event) -> None:
        body = json.dumps({"data": [{"id": "m"}]}).encode()
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with speaking(speak, heard) as url:
        for typed in (url.replace("//", "//me:pass%20word@") + "?a=b%2Fc", url):
            with Endpoint(typed) as endpoint:
                assert endpoint.model == "m"
    login = base64.b64encode(b"me:pass word").decode()
    assert heard[0].startswith(b"GET /v1/models?a=b%2Fc HTTP/1.1\r\n")
    assert f"Authorization: Basic {login}\r\n".encode() in heard[0]
    assert b"GET /v1/models HTTP/1.1\r\n" in heard[1]
    assert b"Authorization: Bearer sesame\r\n" in heard[1]


def test_a_key_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "ses\name")
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY holds a control character") as error:
        Endpoint("localhost:1")
    assert "ses" not in str(error.value)


def test_closing_gives_up_what_is_under_way() -> None:
    started = time.perf_counter()
    with speaking(drip(b"")) as url:
        connection = Connection(parse_address(url), 60, 0.1, 2)
        failed: list[BaseException] = []

        def ask() -> None:
            try:
                connection.ask("GET", "models")
            except BaseException as error:
                failed.append(error)

        thread = Thread(target=ask)
        thread.start()
        time.sleep(0.3)
        connection.close()
        thread.join(5)
    assert time.perf_counter() - started < 4
    assert [type(error).__name__ for error in failed] == ["CancelledError"]


def test_no_label_is_not_asked_again() -> None:
    asked: list[Any] = []

    def answer(path: str, body: Any) -> Any:
        if body is None:
            return {"data": [{"id": "m"}]}
        asked.append(body)
        return said("No\x1bthing")

    with answering(answer) as url, Endpoint(url) as endpoint:
        with pytest.raises(NoLabelError, match="which is no label: the server constrains no answers") as error:
            endpoint.choose("Hello", LABELS)
        assert len(asked) == 4 + 1 + 1  # four ways of constraining, none, and the question itself
    assert str(error.value).isprintable()
