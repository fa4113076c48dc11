"""Models from the Hub and to it, against a stand-in: what is fetched, broken connections, publishing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY, Ran
from tests.converters.hub_stand_in import Hub, stand_in

MODEL = "openai/gpt-oss-toy"
pytestmark = pytest.mark.slow  # starts processes


@pytest.fixture
def hub(mxfp4_toy: Path, tmp_path: Path) -> Iterator[Hub]:
    """A Hub with one model, which also holds the other formats that nobody needs."""
    folder = tmp_path / "on-the-hub"
    shutil.copytree(mxfp4_toy, folder)
    for name in ("original/model.safetensors", "original/config.json", "metal/model.bin", "extra.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    with stand_in() as hub:
        hub.models[MODEL] = folder
        yield hub


def convert(hub: Hub, cwd: Path, *arguments: str | Path, token: str = "hf_secret") -> Ran:
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(cwd / "cache"),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-m", "launch.cli", "convert", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=180)
    return Ran(done.returncode, done.stdout, done.stderr)


def test_only_what_is_needed_is_fetched(hub: Hub, mxfp4_toy: Path, imported: Path, tmp_path: Path) -> None:
    from converters.verify import compare_checkpoints

    done = convert(hub, tmp_path, "import", MODEL, "nemo")
    assert done.status == 0, done.err
    assert hub.fetched() == {file.name for file in mxfp4_toy.iterdir()}
    assert compare_checkpoints(tmp_path / "nemo", imported).same


def test_broken_connections_are_taken_up_where_they_broke(hub: Hub, imported: Path, tmp_path: Path) -> None:
    from converters.verify import compare_checkpoints

    hub.cut_after, hub.cuts = 20_000, 3
    done = convert(hub, tmp_path, "import", MODEL, "nemo")
    assert done.status == 0, done.err
    assert hub.cuts == 0
    assert any(request.endswith("bytes=20000-") for request in hub.requests)
    assert compare_checkpoints(tmp_path / "nemo", imported).same


def test_a_download_that_failed_goes_on_with_the_next_command(hub: Hub, imported: Path, tmp_path: Path) -> None:
    from converters.verify import compare_checkpoints

    hub.cut_after, hub.cuts = 1_000, 1_000
    folder = hub.models[MODEL]
    done = convert(hub, tmp_path, "import", MODEL, "nemo")
    assert done.status == 1
    assert "error: the connection broke 20 times while openai/gpt-oss-toy came" in done.err
    assert not (tmp_path / "nemo").exists()
    kept = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if not file.is_symlink())
    assert kept >= 20_000
    hub.cuts = 0
    hub.requests.clear()
    assert convert(hub, tmp_path, "import", MODEL, "nemo").status == 0
    assert any(" bytes=" in request for request in hub.requests)
    assert compare_checkpoints(tmp_path / "nemo", imported).same
    assert folder.exists()


def test_a_damaged_download_is_told_by_its_hash(hub: Hub, tmp_path: Path) -> None:
    """The cache names files by the hash that the Hub gave: a changed byte is an error that names the file."""
    assert convert(hub, tmp_path, "import", MODEL, "nemo").status == 0
    shutil.rmtree(tmp_path / "nemo")
    (file,) = (tmp_path / "cache").rglob("snapshots/*/model-00002-of-00003.safetensors")
    blob = file.resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    done = convert(hub, tmp_path, "import", MODEL, "nemo")
    assert done.status == 1
    assert "model-00002-of-00003.safetensors is damaged" in done.err
    assert not (tmp_path / "nemo").exists()


@pytest.mark.parametrize(
    ("model", "token", "says"),
    [(MODEL, "wrong", "the Hub did not give it"), ("openai/nothing", "hf_secret", "the Hub did not give it")],
)
def test_what_the_hub_refuses_is_one_sentence(hub: Hub, tmp_path: Path, model: str, token: str, says: str) -> None:
    done = convert(hub, tmp_path, "import", model, "nemo", token=token)
    assert done.status == 1
    assert says in done.err
    assert "Traceback" not in done.err
    assert token not in done.err


def test_an_export_is_pushed_private_unless_asked_otherwise(
    hub: Hub,
    imported: Path,
    tmp_path: Path,
    tensors: Callable[[Path], dict[str, torch.Tensor]],
    same: Callable[..., bool],
) -> None:
    done = convert(hub, tmp_path, "export", imported, "out", "--push-to", "acme/tickets", "--weights", "mxfp4")
    assert done.status == 0, done.err
    assert f"uploaded to {hub.address}/acme/tickets" in done.out
    assert hub.private == {"acme/tickets": True}
    uploaded = tmp_path / "uploaded"
    uploaded.mkdir()
    for name, content in hub.uploads["acme/tickets"].items():
        (uploaded / name).write_bytes(content)
    wanted = {file.name for file in (tmp_path / "out").iterdir()} - {"manifest.json"}
    assert {file.name for file in uploaded.iterdir()} == wanted
    assert same(tensors(uploaded), tensors(tmp_path / "out"))
    assert convert(hub, tmp_path, "export", imported, "out", "--push-to", "acme/open", "--public").status == 0
    assert hub.private["acme/open"] is False


def test_a_push_that_is_refused_ends_before_the_work(hub: Hub, imported: Path, tmp_path: Path) -> None:
    done = convert(hub, tmp_path, "export", imported, "out", "--push-to", "acme/tickets", token="wrong")
    assert done.status == 1
    assert "the Hub did not make acme/tickets" in done.err
    assert not (tmp_path / "out").exists()
