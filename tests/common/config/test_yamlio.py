"""YAML is read as plain values with the line of each key; what could hide or explode is refused."""

from pathlib import Path

import pytest

from lavis_ext.common.config.yamlio import MAX_BYTES, read_yaml
from lavis_ext.common.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_and_places(tmp_path: Path) -> None:
    path = write(
        tmp_path, "run:\n  init_lr: 1e-4\n  name: '1e-4'\n  seed: 3\n  splits: [a, b]\n  flag: yes\n  none: null\n"
    )
    tree, places = read_yaml(path)
    assert tree == {
        "run": {"init_lr": 1e-4, "name": "1e-4", "seed": 3, "splits": ["a", "b"], "flag": True, "none": None}
    }
    assert places["run.seed"] == f"{path}:4"


def test_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "# nothing\n")) == ({}, {})


@pytest.mark.fault("D01", "D02")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r":3 a: is given twice, first in line 1"),
        ("a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("- a\n- b\n", "not a mapping"),
        ("a: [1, 2\n", r"x\.yaml:\d"),
        ("a: &x {b: *x}\n", "contains itself|anchor|alias"),
        ("base: &b [1]\nmany: [" + ", ".join(["*b"] * 65) + "]\n", "65 aliases"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(write(tmp_path, text))


@pytest.mark.fault("D02")
def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_yaml(tmp_path / "binary.yaml")
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ConfigError, match="too many"):
        read_yaml(tmp_path / "big.yaml")
