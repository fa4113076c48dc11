"""Dry runs in this process: what would run, with machine-dependent paths replaced by names."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import dryrun
from launch.executors.profiles import load_profile
from launch.launch_plan import LaunchPlan
from pipeline.loading import make_run
from pipeline.pending import Selection
from tests.conftest import REPOSITORY

DryRun = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment store of NeMo-Run's for this test alone."""
    from nemo_run import config

    monkeypatch.setattr(config, "_NEMORUN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # NeMo-Run's shell commands read it, which pytest forbids
    return tmp_path / "home"


@pytest.fixture
def dry(tmp_path: Path, store: Path) -> DryRun:
    """`dry(profile, recipe, *cluster overrides, overrides=(...))`: what `launch --dryrun` prints."""

    def show(profile: Path | None, recipe: Path, *cluster: str, overrides: tuple[str, ...] = ()) -> str:
        loaded = load_profile(profile, list(cluster))
        run = make_run(recipe, list(overrides), Path(loaded.runs or tmp_path / "runs"))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            dryrun.show(LaunchPlan.of(run, loaded, Selection()))
        text = printed.getvalue()
        for path, name in (
            (store, "/nemo_run_home"),
            (tmp_path, "/here"),
            (Path(sys.executable).parent, "/venv/bin"),
            (REPOSITORY, "/repository"),
        ):
            text = text.replace(str(path), name)
        return text

    return show
