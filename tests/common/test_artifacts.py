from __future__ import annotations

from pathlib import Path

import pytest

from common import artifacts
from common.errors import NemoRunError


def write(folder: Path, text: str = "x") -> None:
    (folder / "a.txt").write_text(text)


def finished(path: Path, text: str = "x") -> None:
    with artifacts.new_folder(path) as folder:
        write(folder, text)
        artifacts.write_manifest(folder, "test", {"text": text})


def test_folder_appears_whole_with_its_manifest(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    manifest = artifacts.read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.files == {"a.txt": 1}
    assert artifacts.is_current(tmp_path / "out", artifacts.fingerprint({"text": "x"}))
    assert not artifacts.is_current(tmp_path / "out", artifacts.fingerprint({"text": "y"}))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    finished(tmp_path / "out", "old")

    def fail() -> None:
        with artifacts.new_folder(tmp_path / "out") as folder:
            write(folder, "new")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_success_replaces_what_was_there(tmp_path: Path) -> None:
    finished(tmp_path / "out", "old")
    finished(tmp_path / "out", "new")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"


def test_somebody_elses_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "precious")
    with pytest.raises(NemoRunError, match="not written by nemo-run"):
        finished(tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "precious"


def test_a_file_of_another_size_makes_the_folder_stale(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    write(tmp_path / "out", "longer")
    assert not artifacts.is_current(tmp_path / "out", artifacts.fingerprint({"text": "x"}))


def test_a_publish_killed_between_its_renames_is_undone(tmp_path: Path) -> None:
    finished(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / "out.old")
    with pytest.raises(ValueError), artifacts.new_folder(tmp_path / "out"):
        raise ValueError
    assert (tmp_path / "out" / "a.txt").read_text() == "old"


def test_resume_hands_out_the_partial_folder(tmp_path: Path) -> None:
    def fail() -> None:
        with artifacts.new_folder(tmp_path / "out", resume=True) as folder:
            write(folder, "half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    with artifacts.new_folder(tmp_path / "out", resume=True) as folder:
        assert (folder / "a.txt").read_text() == "half"
    assert (tmp_path / "out" / "a.txt").read_text() == "half"
