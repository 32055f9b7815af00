"""Runs the notebook as it is, but with less to search, in a kernel of this interpreter."""

from pathlib import Path

import nbclient
import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec

import autocompress

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
KERNEL = "this-interpreter"
SMALL_SPACE = """
version: 1
name: small
description: A few options for every matrix
methods:
  quantize: {bits: [4, 3, 2], group_sizes: [64, row]}
"""
# Said after the notebook's own parameters: the same search on less text, with fewer options.
SHORT = """
from functools import partial

space, trials = str(runs / "space.yaml"), 12
few = dict(
    calibration_tokens=1024,
    selection_tokens=2048,
    report_tokens=4096,
    pricing_tokens=512,
    refit_tokens=2048,
)
autocompress.search = partial(autocompress.search, **few)
"""


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
    parameters.source += SHORT
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    runs.mkdir()
    elsewhere.mkdir()
    (runs / "space.yaml").write_text(SMALL_SPACE)
    monkeypatch.setenv("AUTOCOMPRESS_RUNS", str(runs))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name=kernel)
    client.execute(cwd=str(elsewhere))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"application/vnd.plotly.v1+json", "image/png", "text/html"} <= kinds
    said = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert (
        "A new study" not in said
    )  # what Optuna would say; the bars there are those of transformers
    assert (runs / "compressed" / "config.json").is_file()
    assert list(elsewhere.iterdir()) == []


def test_the_notebook_is_stored_without_outputs():
    cells = [cell for cell in read_notebook().cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
