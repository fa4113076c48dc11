from pathlib import Path

import pytest

from common.errors import CheckpointError
from common.fields import from_tree, to_tree
from pipeline.checkpoints import Parts, name_of, parts_of


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
