"""Addresses as people type them; passwords and queries that go nowhere but to the server."""

from __future__ import annotations

import pytest

from common.errors import ConfigurationError
from serving.address import parse_address


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("localhost:8000", "http://localhost:8000/v1"),
        (" http://localhost:8000/v1/ ", "http://localhost:8000/v1"),
        ("https://gate.example/llm/v1", "https://gate.example/llm/v1"),
        ("gate.example", "http://gate.example/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
        ("http://me:secret@gate.example:81", "http://gate.example:81/v1"),
        ("http://gate.example/v1?api-version=3&x=a%20b", "http://gate.example/v1"),
    ],
)
def test_what_is_shown(typed: str, url: str) -> None:
    assert parse_address(typed).url == url
    assert "secret" not in repr(parse_address(typed))


def test_what_goes_to_the_server() -> None:
    address = parse_address("https://me:s%40crt@gate.example/a/v1?api-version=3")
    assert address.login == ("me", "s@crt")
    assert address.join("models") == "https://gate.example/a/v1/models?api-version=3"
    assert address.join("/tokenize") == "https://gate.example/a/tokenize?api-version=3"


@pytest.mark.parametrize(
    "typed", ["", "http://", "ftp://host", "http://host:99999", "http://a b", "http://h/#part", "http://h\x1b[2J", "::"]
)
def test_what_is_no_address(typed: str) -> None:
    with pytest.raises(ConfigurationError, match="--endpoint") as error:
        parse_address(typed)
    assert str(error.value).isprintable()
