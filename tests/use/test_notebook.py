"""Executes the notebook from its first cell to its last on a part of the real data; its cells contain assertions."""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "tiny_imagenet.ipynb"
ZIP = ROOT.parent / "shared" / "data" / "tiny-imagenet-200-small.zip"


@pytest.fixture
def data(tmp_path, monkeypatch):
    if not ZIP.is_file():
        pytest.skip(f"{ZIP} is not on this machine")
    values = {
        "IMNET_DATA": ZIP,
        "IMNET_OUT": tmp_path / "runs",
        "XDG_CACHE_HOME": tmp_path / "cache",
        "MPLBACKEND": "Agg",
    }
    for name, value in (values | {"PYTHONPATH": os.pathsep.join(sys.path)}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cells(kind):
    return ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == kind]


def test_it_is_kept_without_outputs_and_is_plain_python():
    kept = json.loads(NOTEBOOK.read_text())
    assert kept["nbformat"] == 4
    assert all(not c["outputs"] and c["execution_count"] is None for c in kept["cells"] if c["cell_type"] == "code")
    for number, text in enumerate(cells("code")):
        compile(text, f"cell {number}", "exec")
    assert len(cells("markdown")) >= 5


@pytest.mark.slow
def test_every_cell_runs_in_its_order(data, capsys):
    names = {}
    for number, text in enumerate(cells("code")):
        exec(compile(text, f"cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "20,000 training and 10,000 test pictures of 200 classes" in said
    assert "the run's own page" in said
    assert names["run"].info["status"] == "complete"
    assert [line["epoch"] for line in names["run"].metrics if line["kind"] == "val"] == [1, 2, 3]


@pytest.mark.slow
def test_it_runs_in_a_kernel(data):
    client = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    os.environ.pop("MPLBACKEND")  # the kernel sets its own, which puts pictures into the notebook
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(data)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output for output in outputs if output["output_type"] == "error"]
