"""What is reported of work, and what is shown of reports."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from rich.console import Console

from common.progress import EVERY, Done, TensorCounter, bars, quiet, reported


@pytest.mark.parametrize("total", [None, 2 * EVERY + 3])
def test_reports_of_every_few_hundred_and_of_the_last(total: int | None) -> None:
    seen: list[Done] = []
    count = 2 * EVERY + 3
    assert list(reported(iter(range(count)), "read", total, seen.append)) == list(range(count))
    steps = [Done("read", done, total) for done in (0, EVERY, 2 * EVERY)]
    assert seen == [*steps, Done("read", count, count)]


def test_items_are_given_one_by_one() -> None:
    seen: list[Done] = []
    items = reported(["a", "b"], "read", 2, seen.append)
    assert next(items) == "a"
    assert seen == [Done("read", 0, 2)]
    assert list(items) == ["b"]
    assert seen[1:] == [Done("read", 2, 2)]


def test_of_nothing_nothing_is_done() -> None:
    seen: list[Done] = []
    assert list(reported([], "read", None, seen.append)) == []
    assert seen == [Done("read", 0, 0)]


def test_threads_add_up_bytes_and_tensors() -> None:
    seen: list[Done] = []
    count = TensorCounter("import", 3000, 600, seen.append)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: count(10, 2), range(300)))
    assert seen == [Done("import", 10 * n, 3000, f"{2 * n}/600 tensors") for n in range(1, 301)]


def test_no_terminal_no_bars(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    with bars() as progress:
        assert progress is quiet
        progress(Done("read", 1, 2))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("unit", "amount"), [("items", "300/700"), ("bytes", "300/700 bytes")])
def test_a_terminal_shows_a_bar_for_each_step(unit: str, amount: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = partial(Console, file=shown, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr("rich.console.Console", terminal)
    with bars("bytes" if unit == "bytes" else "items") as progress:
        progress(Done("read", 5, None))
        progress(Done("write", 300, 700, "2/3 tensors"))
    last = shown.getvalue().rpartition("read")[2].splitlines()
    assert [amount in line and "2/3 tensors" in line for line in last if "write" in line] == [True]
