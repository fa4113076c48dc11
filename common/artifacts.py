"""Output folders that are either whole or not there, and the manifest that says what they were made from.

A folder is written beside its final name as `NAME.partial` and renamed when it is whole. Its last file is
`manifest.json`: the kind of artifact, a fingerprint of everything that went in, and the size of every file. A stage
whose manifest carries the wanted fingerprint, and whose files are all there, need not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.errors import NemoRunError

MANIFEST = "manifest.json"
FINISHED = ".finished"
"""Ending of files that note what an interrupted run has done; none is left in a whole folder."""


@dataclass(frozen=True)
class Manifest:
    """Files of an output folder, and the inputs that it was made from."""

    kind: str
    fingerprint: str
    inputs: dict[str, Any]
    files: dict[str, int]
    details: dict[str, Any] = field(default_factory=dict)


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """Hash of `inputs`, which JSON must be able to carry: equal inputs, equal fingerprint."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path, file: Path | None = None) -> Manifest | None:
    """The manifest of a folder (or the one kept in `file`), or None where there is no readable one."""
    try:
        return Manifest(**json.loads((file or folder / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def is_current(folder: Path, wanted: str, file: Path | None = None) -> bool:
    """Whether `folder` is whole (every file of its manifest is there, at its size) and was made from `wanted`.

    `file` names a manifest that is kept elsewhere than in the folder.
    """
    manifest = read_manifest(folder, file)
    if manifest is None or manifest.fingerprint != wanted:
        return False
    return all(_size(folder / name) == size for name, size in manifest.files.items())


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
        if path.is_file() and path != folder / MANIFEST and not path.name.endswith(FINISHED)
    }
    manifest = Manifest(kind, fingerprint(inputs), dict(inputs), files, dict(details or {}))
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
    """The path beside `path` under which it is written; a rename publishes it when it is whole."""
    return path.with_name(path.name + ".partial")


@contextmanager
def new_folder(path: Path, *, resume: bool = False) -> Iterator[Path]:
    """Yield a folder to write in; it becomes `path` when the block ends without an error.

    The former content of `path` stays until then. With `resume`, an interrupted run's partial folder is yielded with
    its files, and kept when the block fails; otherwise it is emptied first and removed on failure.

    Raises:
        NemoRunError: `path` exists and holds something that this package did not write.
    """
    _restore(path)
    ensure_replaceable(path)
    partial = partial_of(path)
    if not resume:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    except BaseException:
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    publish(partial, path)


def ensure_replaceable(path: Path) -> None:
    """Refuse a target that exists and carries no manifest of ours: nobody's files are overwritten.

    Raises:
        NemoRunError: `path` is a file, or a folder with content but without a manifest.
    """
    if path.is_dir() and (read_manifest(path) is not None or not any(path.iterdir())):
        return
    if path.exists() or path.is_symlink():
        raise NemoRunError(f"{path} exists and was not written by nemo-run: name another folder, or remove it first.")


def publish(partial: Path, path: Path) -> None:
    """Flush `partial` to disk and rename it to `path`; what stood there goes only after the new folder is in place."""
    for file in partial.rglob("*"):
        if file.is_file():
            _fsync(file)
    _fsync(partial)
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    _fsync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _restore(path: Path) -> None:
    """Undo a publish that was killed between its two renames."""
    old = path.with_name(path.name + ".old")
    if old.exists() and not path.exists():
        old.rename(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
