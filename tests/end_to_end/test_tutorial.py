"""docs/tutorial.ipynb from its first cell to its last, on the rehearsal's run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY, Rehearsal
from tests.serving.real_vllm import VLLM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NOTEBOOK = REPOSITORY / "docs" / "tutorial.ipynb"


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, 4).cells
    assert [cell.source for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_the_notebook_runs(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's settings are the rehearsal's, so that its stages are current; vLLM is the real one, where it is."""
    assert rehearsal.first.status == 0, rehearsal.first.err
    notebook = nbformat.read(NOTEBOOK, 4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    settings = [argument for argument in rehearsal.arguments[2:] if not argument.startswith("name=")]
    parameters.source += f"\nSETTINGS = {' '.join(settings)!r}\nVLLM = {str(VLLM)!r}\n"
    recipes = rehearsal.cwd / "recipes"
    recipes.symlink_to(REPOSITORY / "recipes")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    try:
        NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(rehearsal.cwd)}}).execute()
    finally:
        recipes.unlink()
    shown = [str(output) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("current, skipped" in output for output in shown)
    assert any("<iframe srcdoc=" in output and "&lt;svg" in output for output in shown)
    assert any("prediction" in output and "right" in output for output in shown)
    if VLLM.is_file():
        assert any("routed_to" in output for output in shown)
