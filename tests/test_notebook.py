"""Runs the notebook as it is, but with fewer trials, in a kernel of this interpreter."""

from pathlib import Path

import nbclient
import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec

import autocompress

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
KERNEL = "this-interpreter"
SHORT = "space, trials = 'quantize_only', 18"


def read_notebook():
    return nbformat.read(NOTEBOOKS / "first_search.ipynb", as_version=4)


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A kernel of the interpreter that runs the tests, whatever kernels the user has."""
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / KERNEL)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", str(Path(autocompress.__file__).parents[1]))
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    return KERNEL


def test_the_notebook_runs_from_any_folder(tmp_path, monkeypatch, kernel):
    notebook = read_notebook()
    parameters = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    parameters.source += f"\n{SHORT}"
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("AUTOCOMPRESS_RUNS", str(runs))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name=kernel)
    client.execute(cwd=str(elsewhere))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"application/vnd.plotly.v1+json", "image/png", "text/html"} <= kinds
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert (runs / "compressed" / "config.json").is_file()
    assert list(elsewhere.iterdir()) == []


def test_the_notebook_is_stored_without_outputs():
    cells = [cell for cell in read_notebook().cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
