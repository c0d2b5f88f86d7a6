"""What a caption must name: detections sorted out by upstream's rules, and the words for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.errors import IntegrityError
from lavis_ext.oscar.constrained import (
    DetectedObject,
    choose_names,
    detected,
    overlap,
    read_forms,
    read_heights,
    suppress_general,
    words_for,
)

TREE = {
    "LabelName": "Entity",
    "Subcategory": [
        {"LabelName": "Animal", "Subcategory": [{"LabelName": "Dog"}, {"LabelName": "Cat"}]},
        {"LabelName": "Toy"},
    ],
}
BOX = (0.0, 0.0, 99.0, 99.0)


def label(name: str, conf: float, rect: Any = BOX) -> dict[str, Any]:
    return {"class": name, "conf": conf, "rect": list(rect)}


def test_the_most_certain_things_that_people_name() -> None:
    rows = [
        ("Person", 0.99),
        ("Dog", 0.5),
        ("Toy", 0.7),
        ("Frisbee", 0.9),
        ("Sandal", 0.2),
        ("Boat", 0.0),
        ("Dog", 0.6),
    ]
    things = detected([label(*row) for row in rows], "x")
    assert choose_names(things) == ["frisbee", "toy", "dog"]
    assert choose_names(things, given=4) == ["frisbee", "toy", "dog"]
    assert choose_names([]) == []
    assert choose_names(detected([label("Kitchen & dining room table", 0.5)], "x")) == ["table"]


def test_a_special_thing_stands_before_the_general_one_in_its_place() -> None:
    heights = read_heights(TREE)
    assert heights == {"entity": 2, "animal": 1, "dog": 0, "cat": 0, "toy": 0}
    animal, dog = DetectedObject("animal", 0.9, BOX), DetectedObject("dog", 0.5, (0, 0, 99, 97))
    far = DetectedObject("animal", 0.4, (200, 200, 250, 250))
    cat = DetectedObject("cat", 0.3, BOX)
    assert suppress_general([animal, dog, far], heights) == [dog, far]
    assert suppress_general([dog, cat], heights) == [dog, cat]
    assert suppress_general([animal, dog], {}) == [animal, dog]
    assert overlap(BOX, (0, 0, 99, 49)) == pytest.approx(0.5) and overlap(BOX, (300, 300, 310, 310)) == 0


def test_words(tmp_path: Path) -> None:
    (tmp_path / "forms.tsv").write_text("dog\tdog, dogs,puppy\n\n##nt\t##nt,##nts\n")
    forms = read_forms(tmp_path / "forms.tsv")
    assert words_for("dog", {}, forms) == ["dog", "dogs", "puppy"] and words_for("cat", {}, forms) == ["cat"]
    pieces = {"hydrant": ["hydra", "##nt"]}
    assert words_for("fire hydrant", pieces, forms) == ["fire hydrant", "fire hydrants"]
    assert words_for("dog dog", {}, forms)[:4] == ["dog dog", "dog dogs", "dog puppy", "dogs dog"]
    (tmp_path / "forms.tsv").write_text("dog\n")
    with pytest.raises(IntegrityError, match="no table of names and words"):
        read_forms(tmp_path / "forms.tsv")


@pytest.mark.parametrize(
    "row", [{"class": "dog"}, label("dog", 1, [1, 2]), {"class": "a", "conf": "x", "rect": [1] * 4}, 3]
)
def test_labels_that_are_none(row: Any) -> None:
    with pytest.raises(IntegrityError, match="image 7: has labels without class, conf or rect"):
        detected([row], "image 7")
