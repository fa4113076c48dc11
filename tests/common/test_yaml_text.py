"""YAML of others: as PyYAML reads it, but for what would take for ever."""

from __future__ import annotations

import time

import pytest

from common.errors import ConfigurationError
from common.values import parse_value
from common.yaml_text import parse_yaml


def bomb(levels: int, kind: str) -> str:
    """A kilobyte of YAML that stands for 9 to the power of `levels` values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        aliases = ", ".join(f"k{i}: *a{level - 1}" if kind == "map" else f"*a{level - 1}" for i in range(9))
        lines.append(f"a{level}: &a{level} " + (f"{{{aliases}}}" if kind == "map" else f"[{aliases}]"))
    return "\n".join(lines)


@pytest.mark.parametrize("text", [bomb(9, "list"), bomb(30, "list"), bomb(9, "map")])
def test_aliases_of_aliases_are_refused_at_once(text: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ConfigurationError, match="stand for more than 100,000 values"):
        parse_yaml(text)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [*a]", "stands for what holds it"),
        ("&a {b: {c: *a}}", "stands for what holds it"),
        ("[" * 50_000, "nested too deeply"),
        ("a: " + "{b: " * 5_000, "nested too deeply"),
        ("x" * (2**20 + 1), "1,048,577 characters"),
    ],
)
def test_other_endless_texts(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_yaml(text)


def test_what_people_write_is_read() -> None:
    text = "base: &base {x: 1, y: [2, 3]}\nmine:\n  <<: *base\n  x: 4\n"
    assert parse_yaml(text) == {"base": {"x": 1, "y": [2, 3]}, "mine": {"x": 4, "y": [2, 3]}}
    assert parse_yaml("") is None
    assert parse_yaml("7") == 7


def test_values_of_the_command_line_are_bounded_too() -> None:
    nested = "[" + ", ".join(f"&a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]" for i in range(9)) + "]"
    for text in (nested, "[" * 50_000):
        with pytest.raises(ConfigurationError):
            parse_value(text)
    assert parse_value("[1, {a: 2e-4}]") == [1, {"a": 2e-4}]
