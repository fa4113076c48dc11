"""The pinned Kaggle dataset, downloaded once with Kaggle's own client."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

from common import artifacts
from common.errors import DataError
from common.values import one_line

DATASET = "tobiasbueck/multilingual-customer-support-tickets"
NAME = DATASET.partition("/")[2]
DEFAULT_FILE = "aa_dataset-tickets-multi-lang-5-2-50-version.csv"  # the largest: 28,587 tickets
LICENCE = "CC BY-NC 4.0"
_FILES = re.compile(r"(aa_)?dataset-tickets-[\w-]+\.csv")
CREDENTIALS = (
    "set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, or put kaggle.json into ~/.kaggle "
    "(kaggle.com, Settings, API)"
)


def is_of_dataset(name: str) -> bool:
    """Whether a file has the name of one of the dataset's, under whose licence it then stands."""
    return _FILES.fullmatch(name) is not None


def cache_folder() -> Path:
    """Where downloads are kept: under XDG_CACHE_HOME, else ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "gpt-oss-nemo-recipes" / "kaggle" / NAME


def fetch(file: str | None = None) -> Path:
    """One file of the dataset, from the cache or from Kaggle; a download that was cut off goes on where it was.

    Raises:
        DataError: no or wrong credentials, no connection, a damaged archive, or no such file in it.
    """
    folder, name = cache_folder(), file or DEFAULT_FILE
    files = folder / "files"
    if not _is_whole(files, name):
        folder.mkdir(parents=True, exist_ok=True)
        archive = folder / f"{NAME}.zip"
        _download(archive)
        _unpack(archive, files)
    hashes = _hashes(files)
    if name not in hashes:
        raise DataError(f"the Kaggle dataset has no file {name!r}: choose one of {', '.join(sorted(hashes))}.")
    return files / name


def _is_whole(files: Path, name: str) -> bool:
    """Whether the archive was unpacked here and `name` is as it was then, or was not in it."""
    hashes = _hashes(files)
    if name not in hashes:
        return bool(hashes)
    return (files / name).is_file() and artifacts.hash_file(files / name) == hashes[name]


def _hashes(files: Path) -> dict[str, str]:
    manifest = artifacts.read_manifest(files)
    return manifest.inputs.get("sha256", {}) if manifest else {}


def _download(archive: Path) -> None:
    """Fetch the whole dataset as a zip, with the client's own resume (it keeps a partial file and its ETag)."""
    if archive.is_file() and not _is_damaged(archive) and not _has_marker(archive):
        return
    api = _authenticated()
    kept = -1
    while True:
        try:
            _fetch_archive(api, archive)
            break
        except _CutOffError as error:
            # the client itself tries again when a connection breaks, but not when it merely ends too early
            if _size(archive) <= kept:
                raise DataError(f"{error}: run the same command to go on.") from None
            kept = _size(archive)
    if not archive.is_file():
        raise DataError(f"Kaggle gave no archive for {DATASET}: try again later.")
    if _is_damaged(archive):
        archive.unlink()
        raise DataError(f"the archive of {DATASET} is damaged and was removed: prepare again to download it anew.")


class _CutOffError(Exception):
    """A download that broke off before its last byte."""


def _authenticated() -> Any:
    """The client, with credentials.

    kaggle 2.2.4: `import kaggle` authenticates at once and swallows the outcome (kaggle/__init__.py); authenticate()
    prints a page and calls exit(1) without credentials (kaggle_api_extended.py `KaggleApi.authenticate`).
    """
    import requests

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            api = _client()
            api.authenticate()
    except requests.HTTPError as error:
        raise _refusal(error) from None
    except requests.RequestException as error:
        raise DataError(f"Kaggle cannot be reached ({one_line(error)}): run the same command to go on.") from None
    except (SystemExit, OSError, ValueError):
        token = os.environ.get("KAGGLE_API_TOKEN")
        problem = "does not know the token of KAGGLE_API_TOKEN" if token else "needs credentials"
        raise DataError(f"Kaggle {problem}: {CREDENTIALS}.") from None
    return api


def _fetch_archive(api: Any, archive: Path) -> None:
    import requests

    quiet = not sys.stderr.isatty()  # the client's progress bar is for people
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            api.dataset_download_files(DATASET, path=str(archive.parent), quiet=quiet)
    except requests.HTTPError as error:
        raise _refusal(error) from None
    except (requests.RequestException, OSError, ValueError) as error:  # ValueError: fewer bytes came than announced
        raise _CutOffError(f"the download from Kaggle broke off ({one_line(error)})") from None


def _refusal(error: Any) -> DataError:
    status = error.response.status_code if error.response is not None else None
    if status in (401, 403):
        return DataError(f"Kaggle refuses the credentials ({status}): {CREDENTIALS}.")
    return DataError(f"Kaggle answers {status} for {DATASET}: try again later.")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _client() -> Any:
    from kaggle.api.kaggle_api_extended import KaggleApi
    from kagglesdk import KaggleClient

    class Client(KaggleApi):
        """Kaggle's client at the address that KAGGLE_API_ENVIRONMENT names.

        kaggle 2.2.4 looks for `--staging` and the like among the arguments of its own command line only
        (`KaggleApi.build_kaggle_client_with_params`); a kagglesdk client without `env` reads the variable.
        """

        def build_kaggle_client(self) -> KaggleClient:
            values: Any = self.config_values
            return KaggleClient(
                username=values.get(self.CONFIG_NAME_USER),
                password=values.get(self.CONFIG_NAME_KEY),
                api_token=values.get(self.CONFIG_NAME_TOKEN),
            )

    return Client()


def _has_marker(archive: Path) -> bool:
    return archive.with_name(archive.name + ".kaggle-partial").exists()


def _is_damaged(archive: Path) -> bool:
    """Whether the zip cannot be read, or a member's CRC-32 is not that of its content."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            return zipped.testzip() is not None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError):
        return True


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the tables of the archive; a member whose path leads elsewhere stops it, before anything is written."""
    with zipfile.ZipFile(archive) as zipped, artifacts.new_folder(folder) as new:
        members = [member for member in zipped.infolist() if not member.is_dir()]
        for member in members:
            # zipfile would quietly strip such parts and write a file of another name
            if member.filename.startswith(("/", "\\")) or ".." in Path(member.filename.replace("\\", "/")).parts:
                raise DataError(
                    f"the archive {archive} holds a path that leads out of it ({member.filename}): remove it."
                )
        for member in members:
            zipped.extract(member, new)
        hashes = {member.filename: artifacts.hash_file(new / member.filename) for member in members}
        artifacts.write_manifest(new, "kaggle-dataset", {"dataset": DATASET, "sha256": hashes})
