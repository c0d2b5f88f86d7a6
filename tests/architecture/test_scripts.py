"""Prepare scripts are thin: they import one name and call it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "prepare_data").rglob("*.py"))
ENTRY = [ROOT / "train.py", ROOT / "evaluate.py"]


@pytest.mark.parametrize("path", [*SCRIPTS, *ENTRY], ids=lambda p: p.name)
def test_script_is_thin(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= 10
    assert sum("lavis_ext" in line and "import" in line for line in lines) == 1


def test_coco_has_its_script() -> None:
    assert "download_coco.py" in [p.name for p in SCRIPTS]
