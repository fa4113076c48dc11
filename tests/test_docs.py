"""The guides hold together: their commands exist, every help's example stands in them, links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from docs.error_page import PAGE, divided, page, sentences_of
from tests.guides import DOCS, PAGES, read, reasons_of, tried_commands
from tests.test_house import ROOT
from tests.test_house import test_the_command_line_knows_what_the_readme_shows as knows

GUIDES = sorted(DOCS.glob("*.md"))


def commands() -> Iterator[tuple[str, Any]]:
    from launch.cli import app

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(command, TyperGroup):
            for word, each in command.commands.items():
                yield from below(f"{name} {word}", each)
        else:
            yield name, command

    yield from below("nemo-run", typer.main.get_command(app))


def examples_of(command: Any) -> list[str]:
    return re.findall(r"Example: (nemo-run .+)", command.help)


def test_every_command_has_an_example_that_the_guides_run() -> None:
    tried = tried_commands()
    for name, command in commands():
        assert examples_of(command), name
        assert [line for line in examples_of(command) if line not in tried or not line.startswith(name)] == []


def test_the_groups_of_the_help() -> None:
    from launch.cli import app

    panels = {each.name: each.rich_help_panel for each in [*app.registered_commands, *app.registered_groups]}
    assert set(panels.values()) == {"Data", "Training", "Checkpoints", "Serving"}
    assert panels["convert"] == "Checkpoints"
    assert {name for name, panel in panels.items() if panel == "Serving"} == {"serve", "route"}


@pytest.mark.parametrize("line", sorted(tried_commands()))
def test_the_command_line_knows_what_the_guides_show(line: str) -> None:
    knows(line)


def test_every_page_with_blocks_is_run() -> None:
    with_blocks = {file.stem for file in GUIDES if "```bash" in file.read_text(encoding="utf-8")}
    assert with_blocks == set(PAGES)
    for name in PAGES:
        assert all(len(reason.split()) >= 3 for reason in reasons_of(name)), name
        assert "nemo-run " not in _unlabelled(name), name
        assert [example.line for example in read(name)]


def _unlabelled(name: str) -> str:
    """The blocks of a page without a language, which nothing runs."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (DOCS / f"{name}.md").read_text(encoding="utf-8"), re.M | re.S)
    return "\n".join(block for language, block in blocks if not language)


@pytest.mark.parametrize("file", [ROOT / "README.md", *GUIDES], ids=lambda file: file.name)
def test_links_lead_to_files_that_are_there(file: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (file.parent / link).exists()] == []


def test_the_page_of_errors_is_that_of_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(ROOT), "run `python docs/error_page.py`"


def test_cause_and_remedy_of_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "room.py"
    file.write_text(
        "def f(path, error):\n"
        "    raise DataError(f'{path} holds no tickets ({one_line(error)}): ' 'name another.')\n"
        "    raise errors.DataError('give a ' + 'share: ' + f'above {least.size}')\n"
        "    raise ValueError('a fault of ours: no sentence')\n"
        "    raise LaunchError(reason)\n"
    )
    said = list(sentences_of(file))
    assert said == ["PATH holds no tickets (…): name another.", "give a share: above SIZE"]
    assert divided(said[0]) == ("PATH holds no tickets (…)", "name another")
    assert divided("PATH: the column is twice the same; name others.") == (
        "PATH: the column is twice the same",
        "name others",
    )
    assert divided("it ends too soon.") == ("it ends too soon", "")
