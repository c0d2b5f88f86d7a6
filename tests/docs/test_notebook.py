"""docs/quickstart.ipynb is committed without outputs, and runs from its first cell to its last."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)


def test_it_is_committed_without_outputs() -> None:
    nbformat.validate(NOTEBOOK)
    cells = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in cells] == [[]] * len(cells)
    assert [cell.execution_count for cell in cells] == [None] * len(cells)


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LAVIS_EXT_")]:
        monkeypatch.delenv(name)
    for name, value in {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = NotebookClient(
        nbformat.from_dict(NOTEBOOK.copy()), timeout=200, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    shown = [output.data for output in outputs if output.output_type == "execute_result"]
    assert any("image/png" in data for data in shown)
    assert any("train" in data["text/plain"] and "200" in data["text/plain"] for data in shown)
    assert any(data.get("text/html", "").count("<img") == 4 for data in shown)
    losses = next(json.loads(data["text/plain"]) for data in shown if data["text/plain"].startswith("["))
    assert losses[-1] < losses[0]
    [page] = tmp_path.rglob("coco.html")
    assert page.stat().st_size > 10_000
