"""The output folder of a conversion: its disk space, its continuation after a kill, files beside the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import artifacts
from common.artifacts import FINISHED
from common.errors import CheckpointError, NemoRunError
from common.hf_tokenizer import old_settings, special_tokens

TOKENIZER_SETTINGS, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    TOKENIZER_SETTINGS,
    SPECIAL_TOKENS,
    "chat_template.jinja",
    "added_tokens.json",
)
GENERATION = "generation_config.json"
LICENSES = ("LICENSE", "USAGE_POLICY")


def is_done(path: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether `path` is whole and was made from `inputs`; a rename that a kill prevented is done now."""
    fingerprint = artifacts.fingerprint(inputs)
    partial = artifacts.partial_of(path)
    if artifacts.is_current(partial, fingerprint):
        _remove_notes(partial)
        artifacts.publish(partial, path)
    return artifacts.is_current(path, fingerprint)


@contextmanager
def resumable_folder(
    path: Path, kind: str, inputs: Mapping[str, Any], size: int
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder to write in that becomes `path` when it is whole; a killed run with the same inputs is continued.

    Yields the folder and the details of its manifest, to be filled.

    Args:
        inputs: all that decides the content.
        size: bytes that will be written.
    Raises:
        CheckpointError: the disk has no room for them.
    """
    partial = artifacts.partial_of(path)
    mark = partial / f"inputs{FINISHED}"
    fingerprint = artifacts.fingerprint(inputs)
    if partial.exists() and not (mark.is_file() and mark.read_text() == fingerprint):
        shutil.rmtree(partial)
    _ensure_room(path, size - _written(partial))
    details: dict[str, Any] = {}
    try:
        with artifacts.new_folder(path, resume=True) as folder:
            for file in list(folder.rglob("*.tmp")):  # what a kill left half-written
                file.unlink()
            artifacts.write_text(mark, fingerprint)
            yield folder, details
            artifacts.write_manifest(folder, kind, inputs, details)
            _remove_notes(folder)
    except NemoRunError:
        # Bad input: it would fail again. What a kill or a full disk interrupts is kept.
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _remove_notes(folder: Path) -> None:
    for file in list(folder.rglob(f"*{FINISHED}")):
        file.unlink()


def _ensure_room(path: Path, needed: int) -> None:
    existing = next(folder for folder in path.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise CheckpointError(
            f"{path} needs {needed / 1e9:.1f} GB and {existing} has {free / 1e9:.1f} GB free: "
            "make room or name a folder on another disk."
        )


def _written(partial: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in partial.rglob("*") if file.is_file())


def source_files(files: list[Path]) -> dict[str, dict[str, Any]]:
    """Identity of source files by name: the hash of a small file, size and time of a large one.

    Large ones are hashed while they are converted, so that a finished conversion is recognized at once.
    """
    return {file.name: _identity(file) for file in files if file.is_file()}


def _identity(file: Path) -> dict[str, Any]:
    status = file.stat()
    if status.st_size < 2**25:
        return {"sha256": artifacts.hash_file(file)}
    return {"bytes": status.st_size, "modified": status.st_mtime_ns}


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer; the settings that transformers 5 wrote come in the fields that transformers 4 reads too."""
    copy_files(TOKENIZER_FILES, source, target)
    raw = json.loads((source / TOKENIZER_SETTINGS).read_text(encoding="utf-8"))
    if (settings := old_settings(raw)) != raw:
        for name, content in ((TOKENIZER_SETTINGS, settings), (SPECIAL_TOKENS, special_tokens(settings))):
            (target / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_files(names: tuple[str, ...], source: Path, target: Path) -> None:
    """Copy those of the named files that exist."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
