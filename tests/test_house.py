"""The rules that keep the house in order: who may import what, what the README shows, which tests are collected."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from common.repository import PACKAGES, REPOSITORY

_NAMED = (ast.FunctionDef, ast.ClassDef)

ROOT = REPOSITORY
HEAVY = {"nemo", "megatron", "lightning"}
# The rooms that import NeMo and Megatron-core; all others work, and are tested, without them.
MAY_IMPORT_NEMO = {"modeling", "training", "stages", "evaluation"}
OF_EVALUATION = {"megatron_model", "kernel_check"}  # the half that runs models in Megatron
MAY_IMPORT_NEMO_RUN = {"recipes", "launch"}
# Processes meet files at these borders, not each other's code.
NEVER = {("launch", "stages"), ("launch", "training")}
# A command and a stage are called by what people type; what they call has a name of its own.
NAMED_BY_VERB = {"launch/commands", "stages"}
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


@dataclass(frozen=True)
class Import:
    """A module that a file imports, whole, and whether at the file's top level."""

    name: str
    top: bool

    @property
    def package(self) -> str:
        return self.name.split(".")[0]


@cache
def files() -> dict[str, Path]:
    """The files of the rooms by their modules' names."""
    found = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in found}


@cache
def imports(module: str) -> list[Import]:
    tree = ast.parse(files()[module].read_text())
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{module} imports relatively"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in files() else node.module for name in whole]
        found += [Import(name, node in tree.body) for name in names]
    return found


def ours(module: str) -> set[str]:
    """Modules of the rooms that a module imports, anywhere in it."""
    return {each.name for each in imports(module) if each.name in files()} - {module}


def test_the_rooms_are_those_that_are_shipped() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {".".join(file.parent.relative_to(ROOT).parts) for file in files().values()}
    assert set(project["tool"]["setuptools"]["packages"]) == packages
    assert {name.split(".")[0] for name in packages} == set(PACKAGES)


def test_nothing_imports_upwards() -> None:
    """`PACKAGES` lists the rooms from the ground up."""
    above = {name: PACKAGES[number + 1 :] for number, name in enumerate(PACKAGES)}
    upwards = {(m, other) for m in files() for other in ours(m) if other.split(".")[0] in above[m.split(".")[0]]}
    assert upwards == set()


def test_no_file_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def follow(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join([*way[way.index(module) :], module])
        if module in done:
            return
        for other in sorted(ours(module)):
            follow(other, (*way, module))
        done.add(module)

    for module in files():
        follow(module, ())


def test_who_imports_nemo_and_nemo_run() -> None:
    found = {(m.split(".")[0], each.package) for m in files() for each in imports(m)}
    assert {room for room, package in found if package in HEAVY} <= MAY_IMPORT_NEMO
    assert {room for room, package in found if package == "nemo_run"} == MAY_IMPORT_NEMO_RUN
    heavy = {m for m in files() if any(each.package in HEAVY for each in imports(m))}
    assert {m.rpartition(".")[2] for m in heavy if m.startswith("evaluation.")} == OF_EVALUATION
    assert not {(m.split(".")[0], other.split(".")[0]) for m in files() for other in ours(m)} & NEVER


def test_nobody_runs_what_a_file_names() -> None:
    """Pickles are read with `safe_pickle` or weights_only; Megatron's loaders stand behind `ensure_safe`."""
    unsafe = {"Unpickler", "load_context", "load_common_state_dict", "read_metadata"}
    found = set()
    for module, file in files().items():
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            name, said = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
            if (
                (name in {"torch.load", "torch.jit.load"} and said.get("weights_only") != "True")
                or re.fullmatch(r"(pickle|cloudpickle|dill|joblib|dist_checkpointing)\.loads?", name)
                or (name in {"np.load", "numpy.load"} and said.get("allow_pickle", "False") != "False")
                or name in {"yaml.unsafe_load", "yaml.full_load"}
                or ("." in name and name.rpartition(".")[2] in unsafe)
            ):
                found.add((module, name))
    assert found == {
        ("modeling.inference", "dist_checkpointing.load"),
        ("training.train", "dist_checkpointing.load_common_state_dict"),
    }
    callers = {module for module in files() if "modeling.inference" in ours(module)}
    loading = {m for m in callers if re.search(r"\.load_(weights|adapter)\(", files()[m].read_text())}
    checking = {m for m in files() if "converters.storage.checked_folder" in ours(m)}
    reading = {"converters.bridge_folder", "converters.storage.weights_reader"}  # plain values, by load_saved
    assert checking == {*loading, *reading, "training.train", "converters.storage.damage"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for module, file in files().items():
        yield from ((module, node) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))


def test_no_code_of_a_model_folder_runs() -> None:
    """transformers would ask at the terminal whether to run it, and `yes |` answers."""
    loaders = r".*\.(from_pretrained|from_config)|AutoTokenizer|pipeline|load_dataset"
    loading = [(m, call) for m, call in calls() if re.fullmatch(loaders, ast.unparse(call.func))]
    said = {(m, keyword.arg, ast.unparse(keyword.value)) for m, call in loading for keyword in call.keywords}
    assert len(loading) == 9
    assert {module for module, _ in loading} == {m for m, name, value in said if name == "trust_remote_code"}
    trusting = [(m, ast.unparse(c)) for m, c in loading if "trust_remote_code=False" not in ast.unparse(c)]
    assert trusting == []


def test_one_function_finds_the_files_of_foreign_folders() -> None:
    """Who reads a folder that others made: its files by `file_in`, its JSON by `read_json`, which calls it."""
    callers: dict[str, set[str]] = {}
    for module, call in calls():
        if (name := ast.unparse(call.func)) in ("file_in", "read_json"):
            callers.setdefault(name, set()).add(module)
    assert callers == {
        "file_in": {
            "common.foreign",
            "converters.bridge_config",
            "converters.bridge_folder",
            "converters.megatron_source",
            "converters.hf_reader",
            "converters.import_hf",
            "converters.lora",
            "converters.nemo_folder",
            "converters.output_folder",
            "converters.storage.checked_folder",
            "converters.storage.damage",
            "converters.storage.weights_reader",
            "converters.storage.safetensors_files",
            "data_prep.preparation",
        },
        "read_json": {
            "converters.hf_reader",
            "converters.nemo_folder",
            "converters.output_folder",
            "converters.peft.lora_settings",
            "converters.storage.safetensors_files",
            "modeling.hf_config",
        },
    }


def test_a_file_name_means_one_thing() -> None:
    """No name stands in two rooms, none is a room's, and no module has a function or class of its own name."""
    places: dict[str, list[str]] = {}
    for module, file in files().items():
        if file.stem in ("__init__", "__main__"):
            continue
        assert file.stem not in PACKAGES, module
        defined = {node.name for node in ast.parse(file.read_text()).body if isinstance(node, _NAMED)}
        assert file.stem not in defined, module
        folder = str(file.parent.relative_to(ROOT))
        if folder not in NAMED_BY_VERB:
            places.setdefault(file.stem, []).append(module)
    assert {stem: modules for stem, modules in places.items() if len(modules) > 1} == {}


@pytest.mark.slow  # torch, transformers and scikit-learn are imported once more
def test_all_other_modules_import_in_a_minimal_installation() -> None:
    lacking = {*HEAVY, "nemo_run", "triton"}  # torch brings Triton where it has CUDA
    heavy = {m for m in files() if any(each.top and each.package in lacking for each in imports(m))}
    while more := {m for m in files() if any(each.top and each.name in heavy for each in imports(m))} - heavy:
        heavy |= more  # what imports a heavy module of ours is heavy itself
    light = [m for m in files() if m not in heavy and not m.startswith("recipes.gpt_oss_")]
    assert {"launch.cli", "launch.commands.plan", "converters.export_hf", "data_prep.preparation"} < set(light)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HEAVY, *light], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def documented_commands() -> list[str]:
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    code = re.findall(r"```\n(.*?)```", text, re.DOTALL) + re.findall(r"`(nemo-run [^`]*)`", text)
    lines = [line.split(" #")[0].strip() for block in code for line in block.splitlines()]
    return [re.sub(r"^\.venv/bin/", "", line) for line in lines if re.match(r"(\.venv/bin/)?nemo-run [a-z]", line)]


@pytest.mark.parametrize("line", documented_commands())
def test_the_command_line_knows_what_the_readme_shows(line: str) -> None:
    """Every command and option exists; placeholders in brackets are tried without the brackets."""
    from launch.cli import app

    command: Any = typer.main.get_command(app)
    words = shlex.split(re.sub(r"[\[\]…]", "", line).replace("\\|", " ").split(" | ")[0])[1:]
    context = typer.Context(command)
    while isinstance(command, TyperGroup):
        name, command, words = command.resolve_command(context, words)
        assert command is not None, name
        context = typer.Context(command, parent=context)
    assert isinstance(command, TyperCommand)
    command.make_parser(context).parse_args(list(words))


@pytest.mark.parametrize("line", ["nemo-run lanch x", "nemo-run convert imprt a b", "nemo-run launch --dryrn x"])
def test_a_mistyped_line_would_be_seen(line: str) -> None:
    with pytest.raises(Exception, match=r"No such (command|option)"):
        test_the_command_line_knows_what_the_readme_shows(line)


def test_only_one_file_reads_what_lies_beside_the_repository() -> None:
    """So that no test has other input on another machine and says nothing."""
    readers = set()
    for file in [*files().values(), *sorted((ROOT / "tests").rglob("*.py"))]:
        texts = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        if texts & {"shared", "../shared"} or any(str(text).startswith("../shared/") for text in texts):
            readers.add(str(file.relative_to(ROOT)))
    assert readers - {"tests/test_house.py"} == {"tests/real_tickets.py"}


def test_every_test_is_in_a_file_that_pytest_collects() -> None:
    files = (ROOT / "tests").rglob("*.py")
    named = {file for file in files if re.search(r"^def test_", file.read_text(), re.MULTILINE)}
    assert named == set((ROOT / "tests").rglob("test_*.py"))


def test_the_table_of_the_readme_is_that_of_the_cards() -> None:
    from verification.__main__ import the_table
    from verification.cards import placed

    text = (ROOT / "README.md").read_text()
    assert placed(text, the_table()) == text, "run `python -m verification --table`"


def test_cards_are_of_items_and_name_tests_that_are_there() -> None:
    from verification.cards import read_cards
    from verification.items import ITEMS, MODELS

    for model in MODELS:
        assert set(read_cards(model)) <= {item.title for item in ITEMS if item.on.get(model)}
    commands = [check.command for item in ITEMS for check in item.on.values() if check]
    named = {path for command in commands for path in re.findall(r"(?:tests|benchmarks)/[\w/.]+", command)}
    assert {path for path in named if not (ROOT / path).exists()} == set()
    assert named
