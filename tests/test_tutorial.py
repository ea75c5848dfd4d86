"""docs/tutorial.ipynb runs from its first cell to its last, and is stored without what a run leaves in it."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.tiny import ROOT
from utils.files import read_rows

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture
def output(tmp_path):
    """A folder for what the notebook writes; without the checkpoints afterwards, which take 770 MB."""
    yield tmp_path / "output"
    for folder in tmp_path.glob("output/runs/*/checkpoints"):
        shutil.rmtree(folder)


def executed(notebook, folder, values):
    """{cell's name: (its text, its pictures)} after a run in a kernel started as Jupyter does it, in the notebook's
    folder; the lines `values` come after the cell of parameters, as papermill has it."""
    (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(values, id="values"))
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    return {cell.id: shown(cell) for cell in notebook.cells if cell.cell_type == "code"}


def shown(cell):
    text = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    return text, sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_it_is_stored_without_outputs(notebook):
    """In Jupyter: Kernel, Restart Kernel and Clear Outputs, before it is saved."""
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell.id for cell in code if cell.outputs or cell.execution_count is not None]
    assert {key for cell in notebook.cells for key in cell.metadata} == {"tags"}
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def test_it_links_to_files_that_are_there(notebook):
    links = [link for cell in notebook.cells for link in re.findall(r"\]\(([^)]+)\)", cell.source)]
    assert links and all((NOTEBOOK.parent / link).is_file() for link in links), links


def test_outside_the_repository_it_says_what_is_missing(notebook, tmp_path):
    (start,) = (cell.source for cell in notebook.cells if cell.id == "start")
    done = subprocess.run(
        [sys.executable, "-c", start], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60
    )
    assert done.returncode == 1
    assert "found no pretrained_weights/vmunet_isic17.h5 in" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_all_cells_run(notebook, output, monkeypatch, tmp_path):
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    values = f"SIZE, EPOCHS, CROPS, OUTPUT = 32, 1, 2, Path({str(output)!r})"
    cells = executed(notebook, NOTEBOOK.parent, values)

    assert not [name for name, (text, _) in cells.items() if "Traceback" in text or "error:" in text]
    assert {name for name, (_, pictures) in cells.items() if pictures} == {
        *("shipped", "sheet", "curves", "panels", "predict")
    }
    assert float(re.search(r"expert's mask: (.*)", cells["shipped"][0])[1]) > 0.9
    assert "Problems: none" in cells["check"][0]
    assert "filled 220 of 222 tensors" in cells["train"][0]
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", cells["library"][0])]
    assert len(losses) == 5 and min(losses[1:]) < losses[0]
    assert "(1, 3, 32, 32)" in cells["load"][0]

    (run,) = output.glob("runs/vmunet_own_*")
    assert len(read_rows(run / "metrics.csv")) == 1 and (run / "report.html").is_file()
    rows = read_rows(output / "predictions" / "structures.csv")
    assert [row["structure"] for row in rows] == ["rim", "core"] * 2
