"""The notebook, run from top to bottom against the real server."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = [pytest.mark.server, pytest.mark.more, pytest.mark.filterwarnings("ignore")]

EXAMPLES = Path(__file__).parents[1] / "examples"


def pictures(notebook):
    """How many pictures each cell shows."""
    outputs = [cell.get("outputs", []) for cell in notebook.cells]
    return [sum("image/jpeg" in output.get("data", {}) for output in cell) for cell in outputs]


def test_the_notebook_runs_and_shows_what_it_shows():
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    shown = pictures(notebook)
    assert sum(shown) == 5
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    assert pictures(notebook) == shown
