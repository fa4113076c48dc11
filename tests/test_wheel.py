"""The wheel of `python -m build` has everything that its commands need.

It is installed into a folder of its own, away from the repository, and takes its dependencies from this environment:
deptry checks that they are all named.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from converters.toy_checkpoint import write_toy_checkpoint
from tests.conftest import REPOSITORY, Ran, run_to_its_end
from tests.converters.conftest import write_tokenizer

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installed:
    """The wheel, unpacked into a folder, and the script that pip made for it."""

    folder: Path
    cwd: Path

    def run(self, *command: str | Path) -> Ran:
        environment = os.environ | {"PYTHONPATH": str(self.folder), "PYTHONSAFEPATH": "1", "COLUMNS": "160"}
        return run_to_its_end([sys.executable, *map(str, command)], cwd=self.cwd, env=environment, timeout=300)

    def nemo_run(self, *arguments: str | Path) -> Ran:
        return self.run(self.folder / "bin" / "nemo-run", *arguments)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    made, folder, cwd = (tmp_path_factory.mktemp(name) for name in ("made", "installed", "elsewhere"))
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    source = tmp_path_factory.mktemp("source")
    for name in tracked.splitlines():  # a copy, since setuptools builds inside the folder
        if (REPOSITORY / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(made), str(source)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*install, *map(str, made.glob("*.whl"))], check=True, capture_output=True, timeout=300)
    return Installed(folder, cwd)


def test_the_wheel_has_this_version_and_its_own_code(installed: Installed) -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert version == (REPOSITORY / "CHANGELOG.md").read_text().partition("\n## ")[2].partition("\n")[0]
    assert (installed.folder / f"gpt_oss_nemo_recipes-{version}.dist-info").is_dir()
    where = installed.run("-c", "import launch.cli; print(launch.cli.__file__)")
    assert where.out.strip() == str(installed.folder / "launch" / "cli.py"), where.err


def test_help(installed: Installed) -> None:
    told = installed.nemo_run("--help")
    assert told.status == 0, told.err
    assert "prepare" in told.out
    assert "convert" in told.out


def test_prepare(installed: Installed) -> None:
    told = installed.nemo_run("prepare", "sample", "--out", "data")
    assert told.status == 0, told.err
    assert (installed.cwd / "data" / "report.html").stat().st_size > 10_000


def test_convert(installed: Installed) -> None:
    model = installed.cwd / "model"
    model.mkdir()
    sizes = {"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 64}
    write_toy_checkpoint(model, config=sizes | {"intermediate_size": 96, "vocab_size": 128}, weights="mxfp4")
    write_tokenizer(model)
    told = installed.nemo_run("convert", "import", "model", "nemo")
    assert told.status == 0, told.err
    told = installed.nemo_run("convert", "verify", "model", "nemo")
    assert " 0 different" in told.out, told.err
