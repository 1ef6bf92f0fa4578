"""The notebooks run from top to bottom, one after another in the same folder, as a reader would."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SMALL = {"NOTEBOOK_STEPS": "2", "NOTEBOOK_CASES": "12"}


def texts(notebook):
    """What the code cells printed."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            yield output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))


@pytest.fixture(scope="module")
def folder(simulated_folder, tmp_path_factory):
    """Where the notebooks run: beside a small simulated shop instead of the sample one."""
    place = tmp_path_factory.mktemp("notebooks")
    shutil.copytree(simulated_folder, place / "shop")
    return place


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_runs_from_top_to_bottom(path, folder, monkeypatch):
    for name, value in {**SMALL, "MPLCONFIGDIR": str(folder / "fonts")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    notebook = nbformat.read(path, 4)
    client = NotebookClient(
        notebook,
        timeout=180,
        startup_timeout=180,  # a busy machine takes its time
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()  # raises where a cell does
    # A shell line that fails does not end its notebook.
    assert not [t for t in texts(notebook) if "Error: " in t or "Usage: " in t or "not found" in t]


def test_the_notebooks_are_numbered():
    assert [p.stem[:2] for p in NOTEBOOKS] == [f"{i:02}" for i in range(1, len(NOTEBOOKS) + 1)]
    assert len(NOTEBOOKS) >= 7


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_stored_notebook_was_run_whole_and_shows_its_plots(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    outputs = [o for c in cells for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert not [t for t in texts(notebook) if "Error: " in t or "/home/" in t or "/tmp/" in t]
    assert not [t for t in texts(notebook) if "\x1b[2K" in t], "frames of a spinner"
    assert path.stat().st_size < 1_000_000
