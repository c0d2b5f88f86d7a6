"""Every YAML that ships is loaded, typed, and has each of its names resolved."""

from pathlib import Path

import pytest

from lavis_ext.common.config.check import check_file

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "studies").glob("*.yaml")])


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(ROOT)) for f in FILES])
def test_yaml_has_no_problem(path: Path) -> None:
    assert [str(problem) for problem in check_file(path)] == []


def test_there_are_yaml_files() -> None:
    assert len(FILES) > 5
