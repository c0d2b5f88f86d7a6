"""The things that NoCaps' captions may be held to name, from the files that a split's YAML lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lavis_ext.common.errors import IntegrityError
from lavis_ext.oscar.datasets.opening import KEYS, ImageTags, find_naming

TREE = {"LabelName": "Thing", "Subcategory": [{"LabelName": "Animal", "Subcategory": [{"LabelName": "Dog"}]}]}


def files(folder: Path, boxes: str) -> ImageTags:
    names = dict(zip(KEYS, ("boxes.tsv", "pieces.tsv", "forms.tsv", "tree.json"), strict=True))
    contents = (boxes, "frisbee\tfris,##bee\n", "dog\tdog,dogs\n", json.dumps(TREE))
    for name, text in zip(names.values(), contents, strict=True):
        (folder / name).write_text(text)
    found = find_naming(folder / "val.yaml", names)
    assert found is not None
    return found


def row(image: str, *labels: tuple[str, float]) -> str:
    return f"{image}\t" + json.dumps([{"class": n, "conf": c, "rect": [0, 0, 9, 9]} for n, c in labels]) + "\n"


def test_words_for_the_most_certain_things_of_an_image(tmp_path: Path) -> None:
    naming = files(tmp_path, row("7", ("Animal", 0.9), ("Dog", 0.5), ("Frisbee", 0.3), ("Man", 1.0)) + row("8"))
    assert naming.of(7) == naming.of("0007") == [["dog", "dogs"], ["frisbee"]]
    assert naming.of(8) == [] and naming.of("none") == []


def test_all_four_files_or_none(tmp_path: Path) -> None:
    files(tmp_path, "")
    assert find_naming(tmp_path / "val.yaml", {"cbs_box": "boxes.tsv"}) is None
    names = dict.fromkeys(KEYS, "absent")
    assert find_naming(tmp_path / "val.yaml", names) is None


def test_files_that_are_broken(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"boxes.tsv:1: has no labels as JSON"):
        files(tmp_path, "7\t{\n").of(7)
    with pytest.raises(IntegrityError, match=r"boxes.tsv:1: has labels without class"):
        files(tmp_path, '7\t[{"class": "dog"}]\n').of(7)
    naming = files(tmp_path, row("7", ("Dog", 0.5)))
    (tmp_path / "tree.json").write_text("[]")
    with pytest.raises(IntegrityError, match="is no tree of classes"):
        naming.of(7)
