"""The rules that keep the house in order: who may import what, what the README shows, which tests are collected."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

ROOT = Path(__file__).parents[1]
PACKAGES = ("recipes", "converters", "data_prep", "modeling", "evaluation", "launch")
HEAVY = {"nemo": "nemo", "megatron": "nemo", "lightning": "nemo", "nemo_run": "nemo_run"}
# The only files that import NeMo or Megatron-core, and NeMo-Run; all others work, and are tested, without them.
MAY_IMPORT = {
    "nemo": {
        "evaluation": {"megatron_model"},
        "modeling": {
            "cpu_backend",
            "expert_lora",
            "gradients",
            "grouped_experts",
            "inference",
            "layer_spec",
            "model_config",
        },
        "recipes": {"continuing", "expert_load", "loggers", "preemption", "saving", "training", "watching"},
    },
    "nemo_run": {
        "launch": {"dryrun", "executors", "experiment", "login", "packaging", "store"},
        "recipes": {"config", "finetuning", "overrides"} | {file.stem for file in ROOT.glob("recipes/gpt_oss_*.py")},
    },
}
WITHOUT_HEAVY = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"nemo", "megatron", "lightning", "nemo_run"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def imports(file: Path) -> list[tuple[str, bool]]:
    """Names of the packages that a file imports, and whether at its top level."""
    tree = ast.parse(file.read_text())
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        found += [(name.split(".")[0], node in tree.body) for name in names]
    return found


def files() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("kind", ["nemo", "nemo_run"])
def test_only_the_named_files_import(kind: str) -> None:
    found: dict[str, set[str]] = {}
    for file in files():
        if any(HEAVY.get(name) == kind for name, _ in imports(file)):
            found.setdefault(file.parent.name, set()).add(file.stem)
    assert found == MAY_IMPORT[kind]


@pytest.mark.slow  # torch, transformers and scikit-learn are imported once more
def test_all_other_modules_import_in_a_minimal_installation() -> None:
    light = [file for file in files() if not any(name in HEAVY and top for name, top in imports(file))]
    # what imports a heavy module of ours is heavy itself
    heavy = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files() if file not in light}
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in light]
    names = [name for name in names if not heavy & modules_of(ROOT / f"{name.replace('.', '/')}.py")]
    assert {"launch.cli", "launch.plan", "converters.export_hf", "data_prep.prepare"} < set(names)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HEAVY, *names], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def modules_of(file: Path) -> set[str]:
    """Modules that a file imports at its top level, with their whole names."""
    if not file.exists():
        return set()
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def documented_commands() -> list[str]:
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    code = re.findall(r"```\n(.*?)```", text, re.DOTALL) + re.findall(r"`(nemo-run [^`]*)`", text)
    lines = [line.split(" #")[0].strip() for block in code for line in block.splitlines()]
    return [re.sub(r"^\.venv/bin/", "", line) for line in lines if re.match(r"(\.venv/bin/)?nemo-run [a-z]", line)]


@pytest.mark.parametrize("line", documented_commands())
def test_the_command_line_knows_what_the_readme_shows(line: str) -> None:
    """Every command and option exists; placeholders in brackets are tried without the brackets."""
    from launch.cli import app

    command: click.Command = typer.main.get_command(app)
    words = shlex.split(re.sub(r"[\[\]…]", "", line).replace("\\|", " ").split(" | ")[0])[1:]
    context = click.Context(command)
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None, name
        context, command = click.Context(found, parent=context), found
    command.make_parser(context).parse_args(list(words))


def test_every_test_is_in_a_file_that_pytest_collects() -> None:
    files = (ROOT / "tests").rglob("*.py")
    named = {file for file in files if re.search(r"^def test_", file.read_text(), re.MULTILINE)}
    assert named == set((ROOT / "tests").rglob("test_*.py"))


def test_the_table_of_the_readme_is_that_of_the_cards() -> None:
    from verification import table

    text = (ROOT / "README.md").read_text()
    assert table.placed(text) == text, "run `python verification/table.py --write`"
