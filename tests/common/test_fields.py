"""The one checker of typed settings: what fits, what is refused in which words, and the way back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from common.errors import ConfigurationError
from common.fields import fit, from_tree, takes_text, to_tree
from common.values import checked_size, one_line, parse_size, size_text


@dataclass(frozen=True)
class Inner:
    side: Literal["left", "right"]
    width: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = field(default_factory=dict)
    count: int = 1
    wide: bool = False
    folder: Path = Path()
    memory: Annotated[str | None, checked_size] = None
    anything: Any = None


TREE = {
    "name": "a",
    "inner": {"side": "left", "width": 2},
    "many": [{"side": "right"}],
    "by_name": {"x": {"side": "left"}},
    "folder": "/some/where",
    "memory": "80GB",
    "anything": {"free": [1]},
}


def test_a_tree_becomes_dataclasses_and_goes_back() -> None:
    outer = from_tree(Outer, TREE, "file")
    assert outer.inner == Inner("left", 2.0)
    assert isinstance(outer.inner.width, float) if outer.inner else False
    assert outer.many == (Inner("right"),)
    assert outer.by_name == {"x": Inner("left")}
    assert outer.folder == Path("/some/where")
    assert from_tree(Outer, to_tree(outer), "file") == outer
    assert to_tree(Outer("a", count=2), omit_defaults=True) == {"name": "a", "count": 2}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"nmae": 1}, "file: there is no key 'nmae'; near ones are name, by_name, many."),
        ({"inner": {"sidde": "left"}}, "file: there is no key 'inner.sidde'; near ones are inner.side."),
        ({"inner": {}}, "file: inner lacks side: add it."),
        ({"inner": {"side": "up"}}, "file: inner.side should be one of left, right, not 'up'."),
        ({"inner": 3}, "file: inner holds no keys but 3: write KEY: VALUE below it."),
        ({"many": "left"}, "file: many should be a list of sets of keys, not 'left'."),
        ({"count": 1.5}, "file: count should be a whole number, not 1.5."),
        ({"count": True}, "file: count should be a whole number, not True."),
        ({"wide": "yes"}, "file: wide should be true or false, not 'yes'."),
        ({"name": None}, "file: name should be text, not None."),
        ({"name": True}, "file: name should be text, not True."),
        ({"memory": "80 bananas"}, "file: memory: '80 bananas' is no size: write for example 80GB or 500MB."),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        from_tree(Outer, TREE | change, "file")
    assert str(refused.value) == sentence


def test_numbers_are_text_where_text_is_wanted() -> None:
    assert fit(str, 20_241, "name", "file") == "20241"
    assert takes_text(str | None)
    assert takes_text(Annotated[str, checked_size])
    assert not takes_text(int | None)


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80 * 10**9), ("1.5 GiB", 3 * 2**29), ("500mb", 5 * 10**8), ("7", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert checked_size(text) == text


@pytest.mark.parametrize("text", ["", "0GB", "-1GB", "80 bananas", "GB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no size"):
        parse_size(text)


def test_sizes_and_errors_in_words() -> None:
    assert (size_text(13_761_264_768), size_text(1_234_567)) == ("13.8 GB", "1.2 MB")
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert one_line("x" * 300, 10) == "xxxxxxxxx…"
