"""Whether a training may go on from the checkpoints in its folder.

NeMo resumes from whatever checkpoint it finds. That is right only for a run that was interrupted: checkpoints of other
settings, or of other data, must not silently become the start of this training.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

from common import artifacts
from common.errors import LaunchError
from pipeline.run_folder import RunFolder
from pipeline.stage import Stage, fingerprint_of, is_current, record_of


def begin(run: RunFolder, stage: Stage) -> None:
    """Note which settings the stage's checkpoints are made with, before there are any."""
    file = begun_note(run, stage)
    file.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_text(file, fingerprint_of(stage, run))


def check(run: RunFolder, stage: Stage) -> None:
    """Refuse to go on with checkpoints that other settings made.

    Raises:
        LaunchError: there are some.
    """
    output = stage.output(run)
    if not _checkpoints(output):
        return
    begun = begun_note(run, stage)
    if not begun.is_file() or begun.read_text() != fingerprint_of(stage, run):
        raise LaunchError(
            f"{output} holds checkpoints of other settings or other data: delete it to train anew, or choose another "
            "run with name=."
        )


def set_aside_damaged(run: RunFolder, stage: Stage) -> Path | None:
    """Move a finished training away that lost files since: it cannot go on, since its last checkpoint has no optimizer.

    Returns:
        Where it lies now, or None if there was nothing to move.
    """
    output = stage.output(run)
    finished = artifacts.read_manifest(output, record_of(stage, run))
    if finished is None or not _checkpoints(output) or is_current(stage, run):
        return None
    if finished.fingerprint != fingerprint_of(stage, run):
        return None
    names = (output.name + ".damaged" + (f".{number}" if number > 1 else "") for number in count(1))
    return output.rename(next(path for path in map(output.with_name, names) if not path.exists()))


def begun_note(run: RunFolder, stage: Stage) -> Path:
    """The file that says which settings a stage's checkpoints are made with."""
    return run.path / "stages" / f"{stage.name}.begun"


def _checkpoints(output: Path) -> list[Path]:
    return [path for path in (output / "checkpoints").glob("*") if path.is_dir()]
