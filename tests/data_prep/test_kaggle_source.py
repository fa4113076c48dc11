"""`nemo-run prepare kaggle` in a process of its own, against a stand-in of Kaggle's API."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.kaggle_source import DEFAULT_FILE, NAME
from data_prep.sample import COLUMNS, sample_tickets
from tests.conftest import REPOSITORY, Ran, nemo_run
from tests.data_prep.kaggle_stand_in import KEY, TOKEN, USER, Server, StandIn, zipped

pytestmark = pytest.mark.slow
OTHER_FILE = "dataset-tickets-german_normalized.csv"


def table(rows: list[dict[str, str]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


FILES = {DEFAULT_FILE: table(sample_tickets(200)), OTHER_FILE: table(sample_tickets(150, seed=4))}


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in [name for name in os.environ if name.startswith("KAGGLE")]:
        monkeypatch.delenv(name)
    for name, value in {
        "HOME": tmp_path / "home",
        "XDG_CACHE_HOME": tmp_path / "cache",
        "XDG_CONFIG_HOME": tmp_path / "config",
        "KAGGLE_API_ENVIRONMENT": "TEST",
        "KAGGLE_USERNAME": USER,
        "KAGGLE_KEY": KEY,
        "NO_PROXY": "localhost",
    }.items():
        monkeypatch.setenv(name, str(value))
    (tmp_path / "home").mkdir()
    stand_in = StandIn(zipped(FILES))
    server = Server(stand_in)
    yield stand_in
    server.close()


def prepare(folder: Path, *arguments: str) -> Ran:
    return nemo_run("prepare", "kaggle", "--out", folder / "out", *arguments, cwd=folder, timeout=120)


def rows(folder: Path) -> int:
    return json.loads((folder / "out" / "report.json").read_text())["rows"]


def archive(folder: Path) -> Path:
    return folder / "cache" / "gpt-oss-nemo-recipes" / "kaggle" / NAME / f"{NAME}.zip"


def refuses(ran: Ran, folder: Path, *words: str) -> None:
    assert ran.status == 1, ran.out
    assert "Traceback" not in ran.err
    (error,) = (line for line in ran.err.splitlines() if line.startswith("error: "))
    for word in words:
        assert word in error
    assert KEY not in ran.err + ran.out
    assert not (folder / "out").exists()
    assert not list(folder.glob("*.partial"))


def test_download_is_cached_and_serves_every_file(tmp_path, kaggle):
    ran = prepare(tmp_path)
    assert ran.status == 0, ran.err
    assert rows(tmp_path) == 200
    again = prepare(tmp_path, "--file", OTHER_FILE)
    assert again.status == 0, again.err
    assert rows(tmp_path) == 150
    assert kaggle.asked == [None]
    refused = prepare(tmp_path, "--file", "tickets-2030.csv")
    assert refused.status == 1
    assert f"no file 'tickets-2030.csv': choose one of {DEFAULT_FILE}, {OTHER_FILE}" in refused.err
    assert rows(tmp_path) == 150


def test_a_cached_file_that_changed_is_unpacked_again(tmp_path, kaggle):
    prepare(tmp_path)
    cached = archive(tmp_path).parent / "files" / DEFAULT_FILE
    cached.write_bytes(b"body,queue\nnot,this\n")
    ran = prepare(tmp_path, "--seed", "2")
    assert ran.status == 0, ran.err
    assert rows(tmp_path) == 200
    assert cached.read_bytes() == FILES[DEFAULT_FILE]
    assert kaggle.asked == [None]


def test_a_connection_that_is_cut_goes_on_where_it_was(tmp_path, kaggle):
    whole = len(kaggle.archive)
    kaggle.cuts = [10_000, whole, 25_000]
    ran = prepare(tmp_path)
    assert ran.status == 0, ran.err
    assert rows(tmp_path) == 200
    # each try asks for the archive anew, and from what it has when the client sees that the archive is the same
    assert [asked for asked in kaggle.asked if asked] == ["bytes=10000-", "bytes=35000-"]


def test_a_server_that_gives_nothing_more_is_given_up(tmp_path, kaggle):
    kaggle.cuts = [10_000, 0, 0, 0, 0]
    refuses(prepare(tmp_path), tmp_path, "the download from Kaggle broke off", "run the same command to go on")
    kaggle.cuts = []
    kaggle.asked.clear()
    assert prepare(tmp_path).status == 0
    assert "bytes=10000-" in kaggle.asked


def test_a_killed_download_goes_on_where_it_was(tmp_path, kaggle):
    kaggle.cuts, kaggle.stalls = [20_000], True
    command = [sys.executable, "-m", "launch.cli", "prepare", "kaggle", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=quiet, stderr=quiet) as process:
        deadline = time.monotonic() + 60
        # the client writes whole blocks: wait for the request, then for what it brings
        while not kaggle.asked and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert not (tmp_path / "out").exists()
    kaggle.stalls = False
    ran = prepare(tmp_path)
    assert ran.status == 0, ran.err
    assert rows(tmp_path) == 200
    kept = kaggle.asked[-1]
    assert kept is None or 0 < int(kept.removeprefix("bytes=").removesuffix("-")) <= 20_000


@pytest.mark.parametrize("credentials", ["token", "kaggle.json"])
def test_other_credentials(tmp_path, kaggle, monkeypatch, credentials):
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    if credentials == "token":
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    else:
        folder = tmp_path / "home" / ".kaggle"
        folder.mkdir()
        (folder / "kaggle.json").write_text(json.dumps({"username": USER, "key": KEY}))
        (folder / "kaggle.json").chmod(0o600)
    ran = prepare(tmp_path)
    assert ran.status == 0, ran.err
    assert rows(tmp_path) == 200
    assert kaggle.refused == 0


def test_missing_credentials(tmp_path, kaggle, monkeypatch):
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    refuses(prepare(tmp_path), tmp_path, "Kaggle needs credentials", "KAGGLE_API_TOKEN", "kaggle.json")
    assert kaggle.asked == []


def test_wrong_credentials(tmp_path, kaggle, monkeypatch):
    monkeypatch.setenv("KAGGLE_USERNAME", "nobody")
    refuses(prepare(tmp_path), tmp_path, "Kaggle refuses the credentials (401)", "KAGGLE_API_TOKEN")
    assert kaggle.asked == []
    assert not archive(tmp_path).exists()


def test_a_damaged_archive_is_removed_and_downloaded_anew(tmp_path, kaggle):
    whole = kaggle.archive
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 0xFF
    kaggle.archive = bytes(damaged)
    refuses(prepare(tmp_path), tmp_path, "is damaged and was removed", "prepare again")
    assert not archive(tmp_path).exists()
    kaggle.archive = whole
    assert prepare(tmp_path).status == 0
    assert rows(tmp_path) == 200


@pytest.mark.parametrize("name", ["../../escaped.csv", "/tmp/escaped-from-the-archive.csv", "a\\..\\..\\escaped.csv"])
def test_a_path_that_climbs_out_writes_nothing(tmp_path, kaggle, name):
    kaggle.archive = zipped({**FILES, name: b"body,queue\nx,y\n"})
    refuses(prepare(tmp_path), tmp_path, "a path that leads out of it", name)
    assert not list(tmp_path.rglob("*escaped*"))
    assert not Path("/tmp/escaped-from-the-archive.csv").exists()
    assert not (archive(tmp_path).parent / "files").exists()


def test_nobody_listens(tmp_path, kaggle, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    refuses(prepare(tmp_path), tmp_path, "the download from Kaggle broke off", "run the same command to go on")
