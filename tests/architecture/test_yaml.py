"""Every YAML that ships is loaded, typed, and has each of its names resolved."""

from pathlib import Path

from lavis_ext.common.config.check import check_file

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "studies").glob("*.yaml")])


def test_yaml_has_no_problem() -> None:
    assert {str(path.relative_to(ROOT)): problems for path in FILES if (problems := check_file(path))} == {}


def test_there_are_yaml_files() -> None:
    assert len(FILES) > 5
