"""The output folder of a conversion: its disk space, its continuation after a kill, files beside the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import artifacts
from common.errors import CheckpointError
from common.foreign import file_in, read_json
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
    artifacts.finish(path)
    return artifacts.is_current(path, artifacts.fingerprint(inputs))


@contextmanager
def resumable_folder(
    path: Path, kind: str, inputs: Mapping[str, Any], size: int, smaller: str = ""
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder to write in that becomes `path` when it is whole; a killed run with the same inputs is continued.

    Yields the folder and the details of its manifest, to be filled.

    Args:
        inputs: all that decides the content.
        size: bytes that will be written.
        smaller: the option that makes less of them, if there is one.
    Raises:
        CheckpointError: the disk has no room for them.
    """
    details: dict[str, Any] = {}
    with artifacts.new_folder(path, continues=artifacts.fingerprint(inputs)) as folder:
        _ensure_room(path, size - _written(folder), smaller)
        for file in list(folder.rglob("*.tmp")):  # what a kill left half-written
            file.unlink()
        yield folder, details
        artifacts.write_manifest(folder, kind, inputs, details)


def _ensure_room(path: Path, needed: int, smaller: str) -> None:
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise CheckpointError(
            f"{path} needs {needed / 1e9:.1f} GB and {existing} has {free / 1e9:.1f} GB free: "
            f"make room, name a folder on another disk{f', or choose {smaller}' if smaller else ''}."
        )


def _written(partial: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in partial.rglob("*") if file.is_file())


def source_files(files: list[Path]) -> dict[str, dict[str, Any]]:
    """Identity of source files by name: the hash of a small file, size and time of a large one.

    Large ones are hashed while they are converted, so that a finished conversion is recognized at once.

    Raises:
        CheckpointError: one of them is a link that leads out of its folder.
    """
    return {file.name: _identity(file) for file in files if file_in(file.parent, file.name).is_file()}


def _identity(file: Path) -> dict[str, Any]:
    status = file.stat()
    if status.st_size < artifacts.SMALL:
        return {"sha256": artifacts.hash_file(file)}
    return {"bytes": status.st_size, "modified": status.st_mtime_ns}


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer; the settings that transformers 5 wrote come in the fields that transformers 4 reads too.

    Raises:
        CheckpointError: a file is damaged, or a link that leads out of its folder.
    """
    copy_files(TOKENIZER_FILES, source, target)
    if not (target / TOKENIZER_SETTINGS).is_file():
        return
    try:
        raw = read_json(target, TOKENIZER_SETTINGS)
    except ValueError as error:
        raise CheckpointError(f"{source / TOKENIZER_SETTINGS} is damaged ({error}): fetch it again.") from None
    if (settings := old_settings(raw)) != raw:
        for name, content in ((TOKENIZER_SETTINGS, settings), (SPECIAL_TOKENS, special_tokens(settings))):
            (target / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_files(names: tuple[str, ...], source: Path, target: Path) -> None:
    """Copy those of the named files that exist.

    Raises:
        CheckpointError: one of them is a link that leads out of its folder.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (file := file_in(source, name)).is_file():
            shutil.copyfile(file, target / name)
