"""Output folders: whole or not there, one writer at a time, and nobody's files are lost."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from common import artifacts, staging
from common.errors import NemoRunError


def write(folder: Path, text: str = "x") -> None:
    (folder / "a.txt").write_text(text)


def finished(path: Path, text: str = "x", continues: str | None = None) -> None:
    with artifacts.new_folder(path, continues=continues) as folder:
        write(folder, text)
        artifacts.write_manifest(folder, "test", {"text": text})


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_folder_appears_whole_with_its_manifest(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    manifest = artifacts.read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.files == {"a.txt": 1}
    assert manifest.hashes == {"a.txt": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    assert artifacts.is_current(tmp_path / "out", artifacts.fingerprint({"text": "x"}))
    assert not artifacts.is_current(tmp_path / "out", artifacts.fingerprint({"text": "y"}))
    assert names(tmp_path) == ["out", "out/a.txt", "out/manifest.json"]


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
    assert names(tmp_path) == ["out", "out/a.txt", "out/manifest.json"]


# ---- the files of others -------------------------------------------------------------------------------------------


def empty_folder(path: Path) -> None:
    path.mkdir()


def full_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


def full_file(path: Path) -> None:
    path.write_text("mine")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def looks_like_ours(path: Path) -> None:
    full_folder(path)
    (path / "manifest.json").write_text('{"name": "of another program"}')


@pytest.mark.parametrize("theirs", [full_folder, full_file, looks_like_ours])
def test_somebody_elses_output_is_not_replaced(theirs: Callable[[Path], None], tmp_path: Path) -> None:
    theirs(tmp_path / "out")
    before = names(tmp_path)
    with pytest.raises(NemoRunError, match="not written by nemo-run"):
        finished(tmp_path / "out")
    assert names(tmp_path) == before


@pytest.mark.parametrize("name", ["out.old", "out.partial", "out.tmp", "out.bak", ".out", "out~"])
@pytest.mark.parametrize("theirs", [full_folder, full_file, empty_folder, looks_like_ours, link_to_nothing])
def test_siblings_of_others_stay(name: str, theirs: Callable[[Path], None], tmp_path: Path) -> None:
    theirs(tmp_path / name)
    before = names(tmp_path)
    for text in ("old", "new"):
        finished(tmp_path / "out", text)
    assert [each for each in names(tmp_path) if not each.startswith("out/") and each != "out"] == before


@pytest.mark.parametrize("name", ["out.nemo-run-partial", "out.nemo-run-former"])
@pytest.mark.parametrize("theirs", [full_folder, looks_like_ours])
def test_even_a_sibling_of_our_own_names_needs_our_mark(
    name: str, theirs: Callable[[Path], None], tmp_path: Path
) -> None:
    finished(tmp_path / "out", "old")
    theirs(tmp_path / name)
    with pytest.raises(NemoRunError, match=rf"{name} is in the way and was not made by nemo-run"):
        finished(tmp_path / "out", "new")
    assert (tmp_path / name / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "out" / "a.txt").read_text() == "old"


@pytest.mark.parametrize("stray", ["NOTES", "sub/NOTES", ".hidden", "a.txt.bak", "link"])
def test_a_file_that_somebody_put_into_an_output_is_not_dropped(stray: str, tmp_path: Path) -> None:
    finished(tmp_path / "out", "old")
    (tmp_path / "out" / stray).parent.mkdir(exist_ok=True)
    if stray == "link":
        (tmp_path / "out" / stray).symlink_to("nowhere")
    else:
        (tmp_path / "out" / stray).write_text("mine")
    with pytest.raises(NemoRunError, match=rf"out holds {stray} which nemo-run did not write"):
        finished(tmp_path / "out", "new")
    assert os.path.lexists(tmp_path / "out" / stray)
    assert (tmp_path / "out" / "a.txt").read_text() == "old"


def test_a_file_that_comes_into_an_output_during_the_work_is_not_dropped(tmp_path: Path) -> None:
    finished(tmp_path / "out", "old")

    def disturbed() -> None:
        with artifacts.new_folder(tmp_path / "out") as folder:
            write(folder, "new")
            artifacts.write_manifest(folder, "test", {"text": "new"})
            (tmp_path / "out" / "NOTES").write_text("mine")

    with pytest.raises(NemoRunError, match="holds NOTES"):
        disturbed()
    (tmp_path / "out" / "NOTES").unlink()
    artifacts.finish(tmp_path / "out")  # the work is not lost either
    assert (tmp_path / "out" / "a.txt").read_text() == "new"


def test_what_nemo_writes_beside_the_tickets_goes_with_them(tmp_path: Path) -> None:
    finished(tmp_path / "out", "old")
    for name in ("a.txt.idx.npy", "a.txt.idx.info"):
        (tmp_path / "out" / name).write_text("index of the old")
    finished(tmp_path / "out", "new")
    assert names(tmp_path / "out") == ["a.txt", "manifest.json"]


# ---- edits ---------------------------------------------------------------------------------------------------------


def test_a_file_of_another_size_makes_the_folder_stale(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    write(tmp_path / "out", "longer")
    assert not artifacts.is_current(tmp_path / "out", artifacts.fingerprint({"text": "x"}))


def test_an_edit_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    wanted, file = artifacts.fingerprint({"text": "x"}), tmp_path / "out" / "a.txt"
    for wait in (0, 1.1):  # before and after the hash may be kept
        time.sleep(wait)
        assert artifacts.is_current(tmp_path / "out", wanted)
        status = file.stat()
        file.write_text("y")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert not artifacts.is_current(tmp_path / "out", wanted)
        file.write_text("x")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_manifests_of_before_have_no_hashes(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    text = (tmp_path / "out" / "manifest.json").read_text()
    (tmp_path / "out" / "manifest.json").write_text(text[: text.index(',\n "hashes"')] + "\n}\n")
    assert artifacts.is_current(tmp_path / "out", artifacts.fingerprint({"text": "x"}))


# ---- kills ---------------------------------------------------------------------------------------------------------


def test_a_publish_killed_between_its_renames_is_undone(tmp_path: Path) -> None:
    finished(tmp_path / "out", "old")
    (tmp_path / "out" / staging.MARK).touch()
    (tmp_path / "out").rename(tmp_path / "out.nemo-run-former")
    with pytest.raises(ValueError), artifacts.new_folder(tmp_path / "out"):
        raise ValueError
    assert (tmp_path / "out" / "a.txt").read_text() == "old"


def test_what_is_continued_is_what_was_made_from_the_same(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"):
        fail_in(tmp_path / "out", "abc")
    with artifacts.new_folder(tmp_path / "out", continues="abc") as folder:
        assert (folder / "a.txt").read_text() == "half"
    assert (tmp_path / "out" / "a.txt").read_text() == "half"
    with pytest.raises(ValueError, match="stop"):
        fail_in(tmp_path / "other", "abc")
    with artifacts.new_folder(tmp_path / "other", continues="def") as folder:
        assert names(folder) == [staging.MARK]


def fail_in(path: Path, continues: str) -> None:
    with artifacts.new_folder(path, continues=continues) as folder:
        write(folder, "half")
        raise ValueError("stop")


@pytest.fixture(params=["beside", "inside"])
def out(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output that is renamed, or one that cannot be, being the working folder."""
    (tmp_path / "out").mkdir()
    if request.param == "inside":
        monkeypatch.chdir(tmp_path / "out")
    return tmp_path / "out"


class _Killed(BaseException):
    pass


def stopping(call: Callable[..., object], left: Iterator[type[BaseException] | None]) -> Callable[..., object]:
    def called(*given: object, **more: object) -> object:
        if killed := next(left, None):
            raise killed
        return call(*given, **more)

    return called


def test_a_publish_killed_at_any_step_comes_to_its_end(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that changes the file system fails once, as if the process had been killed before it."""
    steps = [(Path, "rename"), (Path, "replace"), (Path, "unlink"), (Path, "rmdir"), (Path, "touch"), (staging, "sync")]
    killed = 0
    for number in range(60):
        finished(out, "old")
        left = iter([*[None] * number, _Killed])
        with monkeypatch.context() as patch:
            for owner, name in steps:
                patch.setattr(owner, name, stopping(getattr(owner, name), left))
            try:
                finished(out, "new", continues="new")
            except _Killed:
                killed += 1
        artifacts.finish(out)
        found = (out / "a.txt").read_text()
        wanted = {text: artifacts.is_current(out, artifacts.fingerprint({"text": text})) for text in ("old", "new")}
        assert wanted[found], (number, wanted)
        assert set(names(out)) == {"a.txt", "manifest.json"} | {
            each for each in names(out) if each.startswith(staging.PARTIAL)
        }
        finished(out, "third")
        assert names(out) == ["a.txt", "manifest.json"]
        assert names(out.parent) == ["out", "out/a.txt", "out/manifest.json"]
    assert killed > 10


# ---- places that cannot be renamed ---------------------------------------------------------------------------------


def test_the_working_folder_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    node = tmp_path.stat().st_ino
    for text in ("old", "new"):
        finished(Path("."), text)
        assert names(tmp_path) == ["a.txt", "manifest.json"]
        assert (tmp_path / "a.txt").read_text() == text
        assert artifacts.is_current(Path("."), artifacts.fingerprint({"text": text}))
    assert tmp_path.stat().st_ino == node
    with artifacts.new_folder(Path(".")) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text("x")
        artifacts.write_manifest(folder, "test", {})
    assert names(tmp_path) == ["manifest.json", "sub", "sub/b.txt"]
    (tmp_path / "NOTES").write_text("mine")
    with pytest.raises(NemoRunError, match="holds NOTES"):
        finished(Path("."), "again")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte at a folder of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("only root mounts disks")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_mount_point_is_written_in_place(mounted: Path) -> None:
    for text in ("old", "new"):
        finished(mounted, text)
        assert names(mounted) == ["a.txt", "manifest.json"]
    assert (mounted / "a.txt").read_text() == "new"


def test_a_mount_of_the_same_disk_is_written_in_place(tmp_path: Path, mounted: Path) -> None:
    """As a volume of docker's: its device is that of the folder around it."""
    (mounted / "here").mkdir()
    (mounted / "volume").mkdir()
    subprocess.run(["mount", "--bind", mounted / "volume", mounted / "here"], check=True)
    try:
        for text in ("old", "new"):
            finished(mounted / "here", text)
        assert names(mounted / "here") == ["a.txt", "manifest.json"]
    finally:
        subprocess.run(["umount", mounted / "here"], check=True)


def test_an_output_that_is_a_link_is_written_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    for text in ("old", "new"):
        finished(tmp_path / "out", text)
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "disk") == ["a.txt", "manifest.json"]
    assert (tmp_path / "disk" / "a.txt").read_text() == "new"


# ---- disks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("continues", [None, "abc"])
def test_a_full_disk_is_a_sentence_and_the_next_run_goes_on(mounted: Path, continues: str | None) -> None:
    finished(mounted / "out", "old", continues)

    def fill(size: int) -> None:
        with artifacts.new_folder(mounted / "out", continues=continues) as folder:
            write(folder, "z" * size)
            artifacts.write_manifest(folder, "test", {"size": size})

    with pytest.raises(NemoRunError, match=r"No space left on device\): make room there, or name another disk"):
        fill(2**21)
    assert (mounted / "out" / "a.txt").read_text() == "old"
    assert staging.place_of(mounted / "out").exists() == (continues is not None)
    fill(1000)
    assert (mounted / "out" / "a.txt").stat().st_size == 1000


def test_a_writer_that_reports_no_number(mounted: Path) -> None:
    import numpy as np

    def fill() -> None:
        with artifacts.new_folder(mounted / "out") as folder:
            np.save(folder / "a.npy", np.zeros(2**21, np.uint8))

    with pytest.raises(NemoRunError, match="No space left on device"):
        fill()


def test_a_read_only_disk_is_a_sentence(mounted: Path) -> None:
    finished(mounted / "out", "old")
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    for path in (mounted / "out", mounted / "other", mounted / "deep" / "other"):
        with pytest.raises(NemoRunError, match=r"cannot be written, since .* is no folder to write in"):
            finished(path, "new")
    assert (mounted / "out" / "a.txt").read_text() == "old"


def test_a_disk_that_is_gone_is_a_sentence(mounted: Path) -> None:
    def lose() -> None:
        with artifacts.new_folder(mounted / "out") as folder:
            subprocess.run(["umount", "--lazy", mounted], check=True)
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mounted], check=True)
            write(folder)

    with pytest.raises(NemoRunError, match="the disk does not answer"):
        lose()


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NemoRunError, match="file is no folder to write in"):
        finished(tmp_path / "file" / "out")


# ---- two at once ---------------------------------------------------------------------------------------------------


def hold(path: Path, ready: Event, done: Event) -> None:
    with artifacts.new_folder(path) as folder:
        write(folder, "first")
        ready.set()
        done.wait(60)
        artifacts.write_manifest(folder, "test", {"text": "first"})


def test_the_second_writer_is_refused_and_the_first_ends_well(out: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ready, done = fork.Event(), fork.Event()
    process = fork.Process(target=hold, args=(out, ready, done))
    process.start()
    assert ready.wait(60)
    for write_it in (finished, artifacts.finish):
        with pytest.raises(NemoRunError, match=rf"being written by another nemo-run \(process {process.pid} on "):
            write_it(out)
    done.set()
    process.join(60)
    assert process.exitcode == 0
    assert (out / "a.txt").read_text() == "first"
    finished(out, "second")
    assert (out / "a.txt").read_text() == "second"


def test_a_killed_writer_locks_nobody_out(out: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ready, done = fork.Event(), fork.Event()
    process = fork.Process(target=hold, args=(out, ready, done))
    process.start()
    assert ready.wait(60)
    process.kill()
    process.join(60)
    finished(out, "second")
    assert names(out) == ["a.txt", "manifest.json"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
