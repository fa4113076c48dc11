"""A conversion that is killed anywhere leaves nothing that looks finished, and the next one ends the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import converters.storage.nemo_weights as nemo_weights
from common.staging import place_of
from converters.import_hf import import_checkpoint
from converters.storage.nemo_weights import FINISHED

SCRIPT = Path(__file__).with_name("killed.py")


def kill(direction: str, source: Path, folder: Path, kills: int) -> str:
    """What `killed.py` printed."""
    command = [sys.executable, SCRIPT, direction, source, folder, str(kills)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["import", "bridge", "export"])
def test_fifty_kills_each_way(direction: str, mxfp4_toy: Path, imported: Path, tmp_path: Path) -> None:
    assert kill(direction, imported if direction == "export" else mxfp4_toy, tmp_path, 50).startswith("50 kills")


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
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(mxfp4_toy, tmp_path / "nemo")
    done = {f: f.stat().st_mtime_ns for f in (place_of(tmp_path / "nemo") / "weights").glob(f"*{FINISHED}")}
    files = {f.name.replace(FINISHED, "_0.distcp"): f for f in done}
    before = {name: (f.parent / name).stat().st_mtime_ns for name, f in files.items()}
    assert len(before) > 3
    import_checkpoint(mxfp4_toy, tmp_path / "nemo")
    after = {name: (tmp_path / "nemo" / "weights" / name).stat().st_mtime_ns for name in before}
    assert after == before
