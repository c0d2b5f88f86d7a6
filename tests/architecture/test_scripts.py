"""Prepare scripts are thin: they import one name and call it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "prepare_data").rglob("*.py"))
STEPS = ("extract_coco_image.py", "merge_coco_image.py", "convert_coco_lmdb.py", "extract_captions.py")
"""These work on what is there already; tests/end_to_end/test_volta_coco.py runs them."""
ENTRY = [ROOT / "train.py", ROOT / "evaluate.py"]


@pytest.mark.parametrize("path", [*SCRIPTS, *ENTRY], ids=lambda p: p.name)
def test_script_is_thin(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= 10
    assert sum("lavis_ext" in line and "import" in line for line in lines) == 1


@pytest.mark.parametrize("path", [p for p in SCRIPTS if p.name not in STEPS], ids=lambda p: p.name)
def test_script_plans_from_any_folder(path: Path, tmp_path: Path) -> None:
    own = {"LAVIS_EXT_CACHE_ROOT": str(tmp_path / "data"), "PYTHONPATH": ""}
    names = {"oscar": ["vqa"], "vinvl": ["vqa"]}.get(path.stem.removeprefix("download_"), [])
    command = [sys.executable, str(path), *names, "--dry-run", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    last = json.loads(done.stdout.splitlines()[-1])
    # 6: this disk is too small for all of it · 7: the folder of blobs can only be listed with a token
    assert last["exit_code"] == done.returncode and done.returncode in (0, 6, 7), done.stderr
    assert not (tmp_path / "data").exists()


def test_coco_has_its_script() -> None:
    assert "download_coco.py" in [p.name for p in SCRIPTS]
