"""A run folder of version 0.1: its recipe.yaml and its records' fingerprints are those that this version wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from common.artifacts import Manifest, store_manifest
from common.errors import LaunchError
from pipeline import resume
from pipeline.loading import make_run
from pipeline.run_folder import RunFolder
from pipeline.stage import details_of, is_current, record_of, stage_named, stages_of
from pipeline.upgrade import upgrade_run
from tests.conftest import REPOSITORY

STORED = Path(__file__).parent / "version_0_1" / "recipe.yaml"
OVERRIDES = [
    "name=before",
    "pretraining=null",
    "trainer.max_steps=12",
    "evaluation.max_tickets=40",
    # what the recipe file said then
    "model.toy.head_dim=16",
    "model.toy.num_attention_heads=8",
    "data.seq_length=256",
    "data.packed=false",
    "data.micro_batch_size=8",
    "data.global_batch_size=16",
    "optim.config.lr=1e-3",
    "optim.lr_scheduler.min_lr=1e-4",
]
FINGERPRINTS = {
    "model": "5bdcbcb234d32802fcf38f77c774769caee1d9b43651a35b8674b243186007a9",
    "prepare": "92ecfaca1f2f02348185004c5e9cd83612665fdde96a8adc72ff046a11a12623",
    "import": "da019f76bad1534075d7564168f1356f86547d2b4f27ef587b956cdd84bef9b0",
    "finetune": "f4a7be68b3ca7db071db7dc68d7ec525acb72e440837cbc763660ddf8b35d042",
    "evaluate": "6976aa21fc469c4e446a0a2227508f4635702634ff07bbbac5febae6722c4e30",
    "export": "e31234a699abfd91298e2d584af5ffa13ad109c060cb794ec6307139144f26e0",
}


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """The folder of a finished run, each output one file."""
    path = tmp_path / "before"
    path.mkdir()
    shutil.copy(STORED, path / "recipe.yaml")
    run = RunFolder.open(path)
    for stage in stages_of(run.recipe):
        (stage.output(run) / "checkpoints" / "step=12-last").mkdir(parents=True)
        (stage.output(run) / "made").write_text(stage.name)
        record_of(stage, run).parent.mkdir(exist_ok=True)
        details = {"seconds": 2.5, "made": f"by {stage.name}"}
        files = {"made": len(stage.name)}
        store_manifest(Manifest(stage.name, FINGERPRINTS[stage.name], {}, files, details), record_of(stage, run))
        resume.begun_note(run, stage).write_text(FINGERPRINTS[stage.name])
    return path


def launched(path: Path, *more: str) -> RunFolder:
    """The run that today's recipe file makes under this name."""
    return make_run(REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py", [*OVERRIDES, *more], path.parent)


def test_what_was_finished_is_current(former: Path) -> None:
    run = launched(former)
    assert run.path == former
    # these two's settings name no class
    assert {stage.name for stage in stages_of(run.recipe) if is_current(stage, run)} == {"model", "import"}
    assert upgrade_run(former)
    assert all(is_current(stage, run) for stage in stages_of(run.recipe))
    assert details_of(stage_named("finetune"), run).made == "by finetune"
    assert RunFolder.open(former).recipe == run.recipe
    assert not upgrade_run(former), "a second time there is nothing to do"


def test_an_interrupted_training_goes_on(former: Path) -> None:
    (former / "stages" / "finetune.json").unlink()
    upgrade_run(former)
    run, stage = launched(former), stage_named("finetune")
    assert not is_current(stage, run)
    resume.check(run, stage)
    with pytest.raises(LaunchError, match="holds checkpoints of other settings"):
        resume.check(launched(former, "optim.config.lr=3e-4"), stage)


def test_what_was_out_of_date_stays_so(former: Path) -> None:
    run = RunFolder.open(former)
    for name in ("export.json", "finetune.begun"):
        file = former / "stages" / name
        file.write_text(
            file.read_text().replace(FINGERPRINTS["export"], "0" * 64).replace(FINGERPRINTS["finetune"], "0")
        )
    upgrade_run(former)
    current = {stage.name for stage in stages_of(run.recipe) if is_current(stage, launched(former))}
    assert current == set(FINGERPRINTS) - {"export"}
    assert resume.begun_note(run, stage_named("finetune")).read_text() == "0"


def test_a_killed_upgrade_begins_again(former: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """recipe.yaml changes last, and a record that has today's fingerprint keeps it."""
    from common import artifacts

    calls: list[Path] = []
    store = artifacts.store_manifest

    def stop(manifest: Manifest, file: Path) -> None:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(file)
        store(manifest, file)

    monkeypatch.setattr(artifacts, "store_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        upgrade_run(former)
    monkeypatch.setattr(artifacts, "store_manifest", store)
    assert upgrade_run(former)
    assert all(is_current(stage, launched(former)) for stage in stages_of(launched(former).recipe))


def test_a_recipe_with_its_own_optimizer_settings_keeps_them(former: Path) -> None:
    """Version 0.1 spelled out what follows from the precision; what says something else was meant."""
    text = (former / "recipe.yaml").read_text()
    (former / "recipe.yaml").write_text(
        text.replace("use_distributed_optimizer: false", "use_distributed_optimizer: true")
    )
    recipe = RunFolder.open(former).recipe
    assert recipe.optimizer["use_distributed_optimizer"] is True
    assert "bf16" not in recipe.optimizer
