from pathlib import Path

import pytest

from common.errors import CheckpointError
from common.fields import from_tree, to_tree
from pipeline.checkpoints import Parts, keep_best_and_last, name_of, parts_of, superseded


def test_a_checkpoint_is_called_by_its_step() -> None:
    names = ("step=24-val_loss=0.712345", "step=30-last")
    assert [name_of(Path("c") / name) for name in names] == ["step 24, validation loss 0.712", "step 30, last"]


def test_parts_travel_as_json(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "w", None, tmp_path / "base")
    tree = {"weights": str(tmp_path / "w"), "adapter": None, "like": str(tmp_path / "base")}
    assert to_tree(parts) == tree
    assert from_tree(Parts, tree, "job.json") == parts


def test_an_imported_checkpoint_is_a_whole_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights/: name a run"):
        parts_of(tmp_path)
    (tmp_path / "weights").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no context/hf_config\.json"):
        parts_of(tmp_path)
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "hf_config.json").write_text("{}")
    assert parts_of(tmp_path) == Parts(tmp_path, None, tmp_path)


def _training(folder: Path) -> Path:
    """Checkpoints after four validations, of which the second was the best; a save in between, and one in work."""
    checkpoints = folder / "checkpoints"
    for name in ("step=5-val_loss=0.700000", "step=10-val_loss=0.500000", "step=15-last", "step=20-val_loss=0.600000"):
        (checkpoints / name).mkdir(parents=True)
    (checkpoints / "step=20-val_loss=0.600000-last").symlink_to("step=20-val_loss=0.600000")
    (checkpoints / "step=25-last").mkdir()
    (checkpoints / "step=25-last-unfinished").touch()
    (checkpoints / "mine").mkdir()
    return folder


def test_the_one_before_stays_until_the_next_is_written(tmp_path: Path) -> None:
    best = {"step=10-val_loss=0.500000"}
    old = superseded(_training(tmp_path), 25, best)
    assert [path.name for path in old] == ["step=15-last", "step=5-val_loss=0.700000"]


@pytest.mark.parametrize(("best", "validated"), [(1, [10]), (2, [10, 20]), (-1, [5, 10, 20])])
def test_best_and_last_are_kept_in_the_end(tmp_path: Path, best: int, validated: list[int]) -> None:
    folder = _training(tmp_path)
    (folder / "checkpoints" / "step=25-last-unfinished").unlink()
    (folder / "checkpoints" / "step=4-val_loss=0.800000-last").symlink_to("step=4-val_loss=0.800000")
    keep_best_and_last(folder, best)
    losses = {5: "0.700000", 10: "0.500000", 20: "0.600000"}
    kept = {f"step={step}-val_loss={losses[step]}" for step in validated}
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {*kept, "step=25-last", "mine"}


def test_the_last_may_be_a_link_to_the_best_but_one(tmp_path: Path) -> None:
    checkpoints = _training(tmp_path) / "checkpoints"
    (checkpoints / "step=25-last").rmdir()
    keep_best_and_last(tmp_path)
    links = {path.name: path.exists() for path in checkpoints.iterdir() if path.is_symlink()}
    assert links == {"step=20-val_loss=0.600000-last": True}
