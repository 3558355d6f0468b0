"""The notebook for Colab runs from its first cell to its last, offline."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT

NOTEBOOK = ROOT / "examples" / "tour.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_committed_without_outputs() -> None:
    for cell in cells("code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None


def test_its_python_runs_in_its_order_and_labels_the_dog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("IPython")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    scope: dict[str, Any] = {}
    for cell in cells("code")[1:]:  # the first one installs
        with contextlib.chdir(tmp_path):
            exec("".join(cell["source"]), scope)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["dog.ogg", "Dog"] for line in lines), lines
    assert scope["detection"].events and scope["likeness"].shape == (6, 6)


@pytest.mark.slow
def test_a_kernel_runs_it_as_colab_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    (*_, labels, events, likeness) = [c for c in notebook.cells if c.cell_type == "code"]
    kinds = [
        {key for output in cell.outputs for key in output.get("data", {})}
        for cell in (labels, events)
    ]
    assert "text/html" in kinds[0] and "image/png" in kinds[1]
    printed = "".join(output.get("text", "") for output in labels.outputs)
    assert "Dog" in printed and likeness.outputs
