"""Kill a conversion at random moments, again and again; a process of its own, because it forks and so must have no
threads: `python tests/converters/killed.py import|bridge|export SOURCE FOLDER KILLS`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import converters.storage.nemo_weights as nemo_weights
from common.artifacts import hash_file, read_manifest
from common.staging import MARK, place_of
from converters.export_hf import export_checkpoint
from converters.import_hf import import_checkpoint
from converters.storage.nemo_weights import FINISHED


def start(convert: Callable[[], object]) -> int:
    """Run `convert` in a fork, with torch loaded already; returns its process id."""
    assert threading.active_count() == 1
    process = os.fork()
    if process == 0:
        status = 1
        try:
            convert()
            status = 0
        finally:
            os._exit(status)
    return process


def finish(convert: Callable[[], object]) -> float:
    """Run `convert` to its end; returns the seconds it took."""
    started = time.perf_counter()
    assert os.waitstatus_to_exitcode(os.waitpid(start(convert), 0)[1]) == 0
    return time.perf_counter() - started


def killed(convert: Callable[[], object], seconds: float) -> bool:
    """Kill `convert` after some seconds; whether it was still running."""
    process = start(convert)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files; of the manifest, which is dated, what it says of the others."""
    manifest = read_manifest(folder)
    assert manifest is not None
    assert all((folder / name).stat().st_size == size for name, size in manifest.files.items())
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in ("manifest.json", MARK)]
    assert not [file for file in files if file.name.endswith((FINISHED, ".tmp"))]
    said = {"inputs": repr(manifest.inputs), "files": repr(manifest.files), "details": repr(manifest.details)}
    return {str(file.relative_to(folder)): hash_file(file) for file in files} | said


def main(direction: str, source: Path, folder: Path, kills: int) -> None:
    nemo_weights.SHARD_SIZE = 50_000  # many small files, as of a large model
    out = folder / "out"

    def convert() -> object:
        if direction == "import":
            return import_checkpoint(source, out)
        if direction == "bridge":
            return import_checkpoint(source, out, to="bridge")
        return export_checkpoint(source, out, weights="mxfp4", shard_size="20KB")

    finish(convert)  # compiles the kernels
    expected = contents(out)
    shutil.rmtree(out)
    seconds = finish(convert)
    assert contents(out) == expected
    rng = random.Random(0)
    met = continued = 0
    while met < kills:
        shutil.rmtree(out, ignore_errors=True)
        while not killed(convert, rng.uniform(0, seconds)):
            shutil.rmtree(out)  # it was faster than the kill
        met += 1
        if out.exists():  # whatever is there under the final name is whole
            assert contents(out) == expected
        continued += place_of(out).exists()
        if met % 3 == 0:
            continue  # killed again before it was finished
        finish(convert)
        found = contents(out)
        assert found == expected, [name for name in expected if found.get(name) != expected[name]]
        assert not place_of(out).exists()
    print(f"{met} kills, {continued} of them left something to go on with")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
