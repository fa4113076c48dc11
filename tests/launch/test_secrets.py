"""Secrets travel by name: their values stand in no file, no argument list and no output of any executor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch import experiment
from launch.executors.build import ByName, executor_for
from launch.executors.profiles import load_profile
from launch.export_scripts import export
from launch.launch_plan import LaunchPlan
from pipeline.loading import make_run, write_run
from pipeline.pending import Selection
from tests.conftest import REPOSITORY
from tests.launch.conftest import DryRun

TINY = REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py"
SECRET = "hf_do-not-write-me-down"
CLUSTER = ("cluster.container.image=image:1", "cluster.secrets=[HF_TOKEN]", "cluster.kubeflow.secret=tokens")


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)


def files_with(text: str, folder: Path) -> list[str]:
    """Files below `folder` that hold a text, packed ones unpacked."""
    import gzip
    import zlib
    from base64 import urlsafe_b64decode

    found = []
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        data = file.read_bytes()
        views = [data]
        if file.suffix == ".gz":
            views.append(gzip.decompress(data))
        for packed in data.replace(b'"', b" ").replace(b",", b" ").split():
            try:
                views.append(zlib.decompress(urlsafe_b64decode(packed)))
            except (ValueError, zlib.error):
                continue
        if any(text.encode() in view for view in views):
            found.append(str(file))
    return found


@pytest.mark.parametrize("executor", ["docker", "slurm", "kubeflow"])
def test_dry_runs_name_the_variable_only(executor: str, dry: DryRun) -> None:
    text = dry(None, TINY, f"cluster.executor={executor}", *CLUSTER)
    assert "HF_TOKEN" in text
    assert SECRET not in text


@pytest.mark.parametrize("executor", ["docker", "slurm"])
def test_what_nemo_run_stores_holds_no_value(executor: str, tmp_path: Path, store: Path) -> None:
    profile = load_profile(None, [f"cluster.executor={executor}", *CLUSTER])
    run = make_run(TINY, [], tmp_path / "runs")
    write_run(run)
    with experiment.assembled(LaunchPlan.of(run, profile, Selection(last="prepare")), base_dir=store) as made:
        made.dryrun(log=False, delete_exp_dir=False)
    assert any(name.endswith("_TASKS") for name in files_with("HF_TOKEN", tmp_path))
    assert files_with(SECRET, tmp_path) == []


def test_exported_scripts_hold_no_value(tmp_path: Path, store: Path) -> None:
    profile = load_profile(None, ["cluster.executor=slurm", *CLUSTER])
    run = make_run(TINY, [], tmp_path / "runs")
    export(LaunchPlan.of(run, profile, Selection()), tmp_path / "scripts")
    assert "--container-env" in (tmp_path / "scripts" / "1-model.sbatch").read_text()
    assert files_with(SECRET, tmp_path) == []


def test_docker_gets_the_value_on_sending_only(tmp_path: Path) -> None:
    from docker.utils.utils import format_environment

    profile = load_profile(None, ["cluster.executor=docker", *CLUSTER])
    plan = LaunchPlan.of(make_run(TINY, [], tmp_path), profile, Selection())
    variables = executor_for(plan, plan.todo[0]).env_vars
    assert variables["HF_TOKEN"] == ByName("HF_TOKEN")
    assert SECRET not in repr(variables)
    assert f"HF_TOKEN={SECRET}" in format_environment(variables)
    assert os.environ["HF_TOKEN"] == SECRET
