"""The notebooks of examples/ run from end to end, and are kept without what they print."""

import shutil

import nbformat
import pytest
from nbclient import NotebookClient

from support.repository import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    """They would hold paths and times of the machine that ran it last, and change with each run."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert [cell.outputs for cell in cells if cell.outputs or cell.execution_count] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    here = tmp_path / "examples"
    shutil.copytree(EXAMPLES, here, ignore=shutil.ignore_patterns("runs", "files", "__pycache__"))
    notebook = nbformat.read(here / path.name, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(here)}}).execute()
    assert list(here.glob("runs/**/report.html"))
