"""`prepare_data/download_coco.py` is `lavis-ext prepare coco`, from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "prepare_data" / "download_coco.py"


@pytest.mark.fault("F14")
def test_from_another_folder_and_not_installed(tmp_path: Path) -> None:
    environment = {**os.environ, "LAVIS_EXT_CACHE_ROOT": str(tmp_path / "data"), "PYTHONPATH": ""}
    command = [sys.executable, str(SCRIPT), "--dry-run", "--split", "val", "--max-samples", "10"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "coco/val2014" in done.stdout and "nothing was written" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_has_its_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--split", "vla"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "did you mean 'val'" in done.stderr
