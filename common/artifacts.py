"""Output folders that are either whole or not there, and the manifest that says what they were made from.

A folder is made in a place of its own (`common.staging`) and published when it is whole. Its last file is
`manifest.json`: the kind of artifact, a fingerprint of everything that went in, the size of every file, and the hash of
every small one. A stage whose manifest carries the wanted fingerprint, and whose files are all there, need not run
again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from common import staging
from common.disk import problem_of
from common.errors import NemoRunError

MANIFEST = "manifest.json"
SMALL = 2**25
"""Bytes up to which a file is hashed to see a change; of a larger one the size is compared."""
FINISHED = ".finished"
"""Ending of files that note what an interrupted run has done; none is left in a whole folder."""
_DERIVED = (".idx.npy", ".idx.info")  # what nemo_toolkit 2.7 writes beside a JSONL file that it reads
_TICKS = 10**9  # ns in which a file can be edited twice under one change time, with some to spare
_WITHDRAWN = "withdrawn.json"  # the manifest of an output, while the files of the next one are moved in


@dataclass(frozen=True)
class Manifest:
    """Files of an output folder, and the inputs that it was made from."""

    kind: str
    fingerprint: str
    inputs: dict[str, Any]
    files: dict[str, int]
    details: dict[str, Any] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the small files; manifests of version 0.1 have none."""


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """Hash of `inputs`, which JSON must be able to carry: equal inputs, equal fingerprint."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_once(path: Path) -> str:
    """SHA-256 of a file, read once as long as it does not change: every later stage's fingerprint asks for it."""
    status = path.stat()  # its change time moves with every edit, also where the modification time is set back
    if time.time_ns() - status.st_ctime_ns < _TICKS:
        return hash_file(path)
    return _hash_of_state(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=4096)
def _hash_of_state(path: Path, *state: int) -> str:
    return hash_file(path)


def hash_or_size(path: Path) -> str | int:
    """What tells a file from another version of itself: its hash where it is small, else its size."""
    size = path.stat().st_size
    return hash_once(path) if size < SMALL else size


def read_manifest(folder: Path, file: Path | None = None) -> Manifest | None:
    """The manifest of a folder (or the one kept in `file`), or None where there is no readable one."""
    try:
        return Manifest(**json.loads((file or folder / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def is_current(folder: Path, wanted: str, file: Path | None = None) -> bool:
    """Whether `folder` is whole (every file of its manifest is there, unchanged) and was made from `wanted`.

    `file` names a manifest that is kept elsewhere than in the folder.
    """
    manifest = read_manifest(folder, file)
    if manifest is None or manifest.fingerprint != wanted:
        return False
    return _is_whole(folder, manifest)


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    sizes = all(_size(folder / name) == size for name, size in manifest.files.items())
    return sizes and all(hash_once(folder / name) == sum for name, sum in manifest.hashes.items())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def write_manifest(
    folder: Path,
    kind: str,
    inputs: Mapping[str, Any],
    details: Mapping[str, Any] | None = None,
    file: Path | None = None,
) -> Manifest:
    """Write the manifest of a finished folder, as its last file.

    Args:
        kind: what the folder is, such as "prepared-tickets" or "nemo-checkpoint".
        inputs: everything that decides the content (options, hashes of sources, versions); its hash is the fingerprint.
        details: figures worth keeping that decide nothing (seconds, counts).
        file: where to keep the manifest, if not in the folder.
    """
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, staging.MARK) and not path.name.endswith(FINISHED)
    }
    hashes = {name: hash_file(folder / name) for name, size in files.items() if size < SMALL}
    manifest = Manifest(kind, fingerprint(inputs), dict(inputs), files, dict(details or {}), hashes)
    store_manifest(manifest, file or folder / MANIFEST)
    return manifest


def store_manifest(manifest: Manifest, file: Path) -> None:
    """Write a manifest to a file."""
    write_text(file, json.dumps(asdict(manifest), indent=1, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step: a reader sees the old text or the new, never half."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file's content in one step, and have it on the disk when this returns."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def partial_of(path: Path) -> Path:
    """The path beside the file `path` under which it is written; a rename publishes it when it is whole."""
    return path.with_name(path.name + ".partial")


@contextmanager
def new_folder(path: Path, *, continues: str | None = None) -> Iterator[Path]:
    """Yield a folder to write in; it becomes `path` when the block ends without an error.

    The former content of `path` stays until then. Nobody else can write `path` meanwhile.

    Args:
        continues: fingerprint of what it is made from. What a run from the same inputs left is then yielded with its
            files, and kept when this one is interrupted; otherwise the folder is empty, and removed on failure.
    Raises:
        NemoRunError: `path` holds something that this package did not write, is being written by another process, or
            lies on a disk that is full or cannot be written.
    """
    path = ensure_replaceable(path)
    try:
        with staging.held(path, continues or "") as (folder, begun):
            staging.restore(path)
            if continues is None or not begun:
                staging.clear(folder)
            yield from _made(folder, path, kept=continues is not None)
    except OSError as error:
        if said := problem_of(error, path.parent):
            raise NemoRunError(said) from error
        raise


def _made(folder: Path, path: Path, *, kept: bool) -> Iterator[Path]:
    try:
        yield folder
    except BaseException as error:
        said = None if isinstance(error, NemoRunError) else problem_of(error, folder)
        # bad input would fail again; what a kill or a full disk interrupts can go on
        if not kept or isinstance(error, NemoRunError):
            with suppress(OSError):  # of a disk that is gone
                staging.remove(folder)
        if said:
            raise NemoRunError(said) from error
        raise
    _publish(folder, path)


def finish(path: Path) -> None:
    """Publish a folder that was whole when a kill prevented it.

    Raises:
        NemoRunError: another process is writing `path`, or it holds something that this package did not write.
    """
    path = _real(path)
    folder = staging.place_of(path)
    with suppress(OSError):
        (path / staging.MARK).unlink()  # a kill within a publish leaves it
    if not (folder / staging.MARK).is_file() and not staging.former_of(path).is_dir():
        return
    path = ensure_replaceable(path)
    begun = (folder / staging.MARK).read_text().partition("\n")[0] if folder.is_dir() else ""
    with staging.held(path, begun) as (folder, _):
        staging.restore(path)
        manifest = read_manifest(folder)
        if (folder / _WITHDRAWN).is_file() or (manifest is not None and _is_whole(folder, manifest)):
            _publish(folder, path)
        elif not begun:
            staging.remove(folder)


def ensure_replaceable(path: Path) -> Path:
    """Refuse a target that holds what a manifest of ours does not name, or that cannot be written; before the work.

    Returns:
        The path without links.
    Raises:
        NemoRunError: it is a file, holds files of somebody else, or lies where nothing can be written.
    """
    path = _real(path)
    if path.is_dir():
        if strays := _unknown(path):
            manifest = read_manifest(path)
            what = "and was not written by nemo-run" if manifest is None else "which nemo-run did not write"
            holds = "exists" if manifest is None else f"holds {', '.join(strays[:3])}"
            raise NemoRunError(f"{path} {holds} {what}: name another folder, or move that away first.")
    elif os.path.lexists(path):
        raise NemoRunError(f"{path} exists and was not written by nemo-run: name another folder, or remove it first.")
    written = path if staging.is_fixed(path) else path.parent
    existing = next(each for each in (written, *written.parents) if os.path.lexists(each))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise NemoRunError(f"{path} cannot be written, since {existing} is no folder to write in: name another folder.")
    return path


def _unknown(path: Path) -> list[str]:
    """Files of an output folder that no manifest of ours names, and nothing of ours wrote."""
    known = {MANIFEST, staging.MARK}
    for folder in (path, path / staging.PARTIAL):
        for name in (MANIFEST, _WITHDRAWN):
            if manifest := read_manifest(folder, folder / name):
                known |= manifest.files.keys()
    present = [file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()]
    names = [str(file.relative_to(path)) for file in present if not file.is_relative_to(path / staging.PARTIAL)]
    derived = {name + ending for name in known for ending in _DERIVED}
    return sorted(set(names) - known - derived)


def _real(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path))
    except FileNotFoundError:
        raise NemoRunError(f"the folder from which nemo-run was started is gone: change to another ({path}).") from None


def _publish(folder: Path, path: Path) -> None:
    """Flush a whole folder to the disk and let it take the place of `path`."""
    for file in folder.rglob("*"):
        if file.name.endswith(FINISHED):
            file.unlink()
        elif file.is_file():
            staging.sync(file)
    staging.sync(folder)
    ensure_replaceable(path)  # again: the work took its time
    if folder.parent == path:
        _move_in(folder, path)
    else:
        staging.exchange(folder, path)


def _move_in(folder: Path, path: Path) -> None:
    """Let the files of `folder` take the places of those in `path` above it; a kill at any moment can be gone on with.

    The manifest goes first and comes last: what lies between two of them is not whole.
    """
    withdrawn = folder / _WITHDRAWN
    if not withdrawn.is_file():
        if (path / MANIFEST).is_file():
            (path / MANIFEST).rename(withdrawn)
        else:
            withdrawn.touch()
    former, new = read_manifest(path, withdrawn), read_manifest(folder) or read_manifest(path)
    assert new is not None
    for name in new.files:
        if (folder / name).is_file():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).replace(path / name)
    written = set(former.files) if former else set()
    for name in written - set(new.files) | {name + ending for name in written for ending in _DERIVED}:
        (path / name).unlink(missing_ok=True)
    if (folder / MANIFEST).is_file():
        (folder / MANIFEST).replace(path / MANIFEST)
    staging.sync(path)
    staging.remove(folder)
