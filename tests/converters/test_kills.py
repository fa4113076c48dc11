"""A conversion that is killed anywhere leaves nothing that looks finished, and the next one ends the same."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import converters.nemo_weights as nemo_weights
from artifacts import hash_file, partial_of, read_manifest
from converters.export_hf import export_checkpoint
from converters.folders import FINISHED
from converters.import_hf import import_checkpoint


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files but the manifest, and the model card, which hold dates; and .metadata, which holds a path."""
    skip = ("manifest.json", "README.md", ".metadata")
    return {
        str(f.relative_to(folder)): hash_file(f)
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.name not in skip
    }


def kill_and_repeat(convert: Callable[[Path], object], out: Path, kills: int, seconds: float) -> None:
    """Start and kill `convert` until `kills` met a running conversion, then let it finish."""
    context = multiprocessing.get_context("fork")  # torch is loaded once; no threads run in this process
    rng = random.Random(0)
    met = 0
    for _ in range(20 * kills):
        process = context.Process(target=convert, args=(out,))
        process.start()
        time.sleep(rng.uniform(0, seconds))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        met += process.exitcode == -signal.SIGKILL
        if out.exists():  # whatever is there under the final name is whole
            manifest = read_manifest(out)
            assert manifest is not None
            assert all((out / name).stat().st_size == size for name, size in manifest.files.items())
            shutil.rmtree(out)
        if met == kills:
            break
    assert met == kills
    assert duration(convert, out) > 0


def duration(convert: Callable[[Path], object], out: Path) -> float:
    started = time.perf_counter()
    process = multiprocessing.get_context("fork").Process(target=convert, args=(out,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - started


def run(direction: str, source: Path, tmp_path: Path, kills: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nemo_weights, "SHARD_SIZE", 50_000)  # many small files, as of a large model
    assert threading.active_count() == 1

    def convert(out: Path) -> object:
        if direction == "import":
            return import_checkpoint(source, out)
        return export_checkpoint(source, out, weights="mxfp4", shard_size="20KB")

    seconds = duration(convert, tmp_path / "undisturbed")
    kill_and_repeat(convert, tmp_path / "killed", kills, seconds)
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")
    assert not partial_of(tmp_path / "killed").exists()
    assert not list(tmp_path.rglob(f"*{FINISHED}"))
    details = [read_manifest(tmp_path / name).details for name in ("killed", "undisturbed")]  # type: ignore[union-attr]
    assert details[0] == details[1]


@pytest.mark.parametrize("direction", ["import", "export"])
def test_kills(
    direction: str, mxfp4_toy: Path, imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(direction, mxfp4_toy if direction == "import" else imported, tmp_path, 6, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["import", "export"])
def test_a_hundred_kills(
    direction: str, mxfp4_toy: Path, imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(direction, mxfp4_toy if direction == "import" else imported, tmp_path, 50, monkeypatch)


def test_finished_files_are_not_written_again(mxfp4_toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nemo_weights, "SHARD_SIZE", 50_000)
    calls: list[int] = []
    produce = nemo_weights._Producer.resolve_data

    def interrupt(self: nemo_weights._Producer, item: object) -> object:
        calls.append(1)
        if len(calls) == 40:
            raise KeyboardInterrupt
        return produce(self, item)  # type: ignore[arg-type]

    monkeypatch.setattr(nemo_weights._Producer, "resolve_data", interrupt)
    with pytest.raises(BaseException, match=""):
        import_checkpoint(mxfp4_toy, tmp_path / "nemo")
    done = {f: f.stat().st_mtime_ns for f in (partial_of(tmp_path / "nemo") / "weights").glob(f"*{FINISHED}")}
    files = {f.name.replace(FINISHED, "_0.distcp"): f for f in done}
    before = {name: (f.parent / name).stat().st_mtime_ns for name, f in files.items()}
    assert len(before) > 3
    import_checkpoint(mxfp4_toy, tmp_path / "nemo")
    after = {name: (tmp_path / "nemo" / "weights" / name).stat().st_mtime_ns for name in before}
    assert after == before
