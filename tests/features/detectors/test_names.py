"""Names of classes from the files that detectors are published with."""

import json
from pathlib import Path

import pytest

from lavis_ext.common.errors import ConfigError, UsageError
from lavis_ext.features.detectors import DetectorOptions, build_detector
from lavis_ext.features.detectors.base import read_names


def test_a_vocabulary_has_one_name_a_line_and_synonyms_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "objects_vocab.txt"
    path.write_text("yolk\nGoal, goal post\nbathroom\n\n")
    assert read_names(path, "label", 3) == ("yolk", "goal", "bathroom")


def test_a_label_map_counts_from_one(tmp_path: Path) -> None:
    path = tmp_path / "VG-SGG-dicts-vgoi6-clipped.json"
    numbers = {"b": 2, "__background__": 0, "a": 1}
    path.write_text(json.dumps({"label_to_idx": numbers, "attribute_to_idx": {"red": 1}, "idx_to_label": {}}))
    assert read_names(path, "label", 2) == ("a", "b")
    assert read_names(path, "attribute", 1) == ("red",)


def test_a_list_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('["x", "y"]')
    assert read_names(path, "label", 2) == ("x", "y")


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '{"label_to_idx": {"a": "1"}}', "3"])
def test_what_is_no_list_of_names_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json"):
        read_names(path, "label", 1)


def test_the_count_must_be_the_detectors(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="holds 2 label names, the detector knows 6"):
        build_detector("tiny", DetectorOptions(classes=tmp_path / "x.txt"))
    with pytest.raises(UsageError, match="no such file"):
        read_names(tmp_path / "absent.txt", "label", 1)
    assert read_names(None, "label", 1600) == ()


def test_a_detector_takes_the_names_given(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("\n".join("abcdef"))
    assert build_detector("tiny", DetectorOptions(classes=tmp_path / "x.txt")).classes == tuple("abcdef")
    assert build_detector("tiny").classes == ("circle", "square", "triangle", "star", "cross", "ring")
