"""Folders that others made: no link, name or special file leads out of them, and their JSON is bounded."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from common.errors import CheckpointError
from common.foreign import LARGEST_JSON, file_in, read_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "private.txt").write_text("mine")
    (tmp_path / "theirs" / "sub").mkdir(parents=True)
    (tmp_path / "theirs" / "a.json").write_text("{}")
    return tmp_path / "theirs"


def link(name: str, target: str) -> None:
    os.symlink(target, name)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("LICENSE", "../private.txt"),
        ("LICENSE", "sub/../../private.txt"),
        ("LICENSE", "hop"),  # which leads out in its turn
        ("../private.txt", None),
        ("sub/../../private.txt", None),
        ("/etc/hostname", None),
        ("LICENSE", "/dev/zero"),
        ("LICENSE", "../not-there-yet"),
    ],
)
def test_what_leads_out_is_refused(folder: Path, name: str, target: str | None) -> None:
    link(str(folder / "hop"), "../private.txt")
    if target is not None:
        link(str(folder / name), target)
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        file_in(folder, name)


def test_what_stays_inside_is_given(folder: Path, tmp_path: Path) -> None:
    link(str(folder / "b.json"), "a.json")
    link(str(folder / "sub" / "c.json"), "../a.json")
    link(str(tmp_path / "by-link"), "theirs")
    for name in ("a.json", "b.json", "sub/c.json"):
        assert file_in(folder, name) == folder / name
        assert read_json(tmp_path / "by-link", name) == {}
    assert not file_in(folder, "none").exists()


def test_the_hubs_cache_links_to_its_blobs_and_to_nothing_else(tmp_path: Path) -> None:
    model = tmp_path / "models--org--name"
    snapshot = model / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    (model / "blobs" / "hash").write_text("{}")
    (tmp_path / "private").write_text("mine")
    link(str(snapshot / "config.json"), "../../blobs/hash")
    link(str(snapshot / "LICENSE"), "../../blobs/../../private")
    assert read_json(snapshot, "config.json") == {}
    with pytest.raises(CheckpointError, match="leads out"):
        file_in(snapshot, "LICENSE")


def test_blobs_that_are_a_link_themselves_are_no_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "key").write_text("mine")
    link(str(tmp_path / "models--org--name" / "blobs"), "../home")
    link(str(snapshot / "LICENSE"), "../../blobs/key")
    with pytest.raises(CheckpointError, match="leads out"):
        file_in(snapshot, "LICENSE")


def test_pipes_and_folders_are_no_files(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    for name in ("pipe", "sub"):
        with pytest.raises(CheckpointError, match="a folder, a pipe or a device"):
            file_in(folder, name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' stands in it twice"),
        ('{"x": {"a\\u0007": 1, "a\\u0007": 3}}', r"'a\\x07' stands"),
        ("1" * 5_000, "integer string conversion"),
        ("", "Expecting value"),
    ],
)
def test_what_is_no_json_is_a_value_error(folder: Path, text: str, words: str) -> None:
    (folder / "a.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_json(folder, "a.json")


def test_a_file_larger_than_any_index_is_not_read(folder: Path) -> None:
    with (folder / "a.json").open("wb") as file:
        file.truncate(50 * LARGEST_JSON)
    started = time.perf_counter()
    with pytest.raises(ValueError, match="are more than the 16,777,216 that are read"):
        read_json(folder, "a.json")
    assert time.perf_counter() - started < 1
