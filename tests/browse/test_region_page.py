"""Pages of data sets on region features: texts, tags, answers and boxes, with and without pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis_ext.browse.dataset_page import write_dataset_page
from lavis_ext.browse.regions import draw_regions, names_of, region_line, regions_of
from lavis_ext.browse.views import view_of
from lavis_ext.cli import main
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.features import import_features, open_store
from tests.support.features import b64
from tests.support.region_data import (
    built,
    write_captions,
    write_corpus,
    write_gqa,
    write_ir,
    write_nlvr2,
    write_volta,
    write_vqa,
)

PAGES: list[tuple[str, Callable[[Path], Any], tuple[str, ...]]] = [
    ("oscar_vqa", write_vqa, ("what is red ?", "tags: cat dog red ball", "yes")),
    ("oscar_gqa", write_gqa, ("is it red ?", "tags: cat ball", "red ball")),
    ("oscar_nlvr2", write_nlvr2, ("the left cat is on the right tree .", "tags: ball", ">1<")),
    ("oscar_coco_ir", write_ir, ("the cat is on", "tags: dog red ball")),
    ("oscar_coco_caption", write_captions, ("the cat is on the tree",)),
    ("oscar_pretrain", write_corpus, ("is it red",)),
    ("volta_coco_retrieval", write_volta, ("the cat is on",)),
]


@pytest.mark.parametrize(("name", "write", "texts"), PAGES, ids=[name for name, _, _ in PAGES])
def test_every_shape_has_a_page(
    name: str, write: Callable[[Path], Any], texts: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path)
    page = write_dataset_page(name, tmp_path / "page.html", tmp_path).read_text()
    for text in texts:
        assert text in page
    assert page.count("data:image/jpeg;base64,") >= 2
    assert "could not be read" not in page


def test_boxes_are_drawn_on_the_picture_that_is_there(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    folder = tmp_path / "coco/images/train2014"
    folder.mkdir(parents=True)
    Image.new("RGB", (80, 60), (10, 200, 10)).save(folder / "COCO_train2014_000000000011.jpg")
    view = view_of(built("oscar_vqa", tmp_path)["train"])
    assert view is not None
    items = view.items(3, None)
    [own], [grey] = view.pictures(items[0]), view.pictures(items[1])
    assert own.shape == grey.shape == (570, 760, 3)  # large enough for labels to be read
    assert np.abs(own.astype(int) - [10, 200, 10]).sum(2).max() > 200  # a box
    assert (np.abs(own.astype(int) - [10, 200, 10]).sum(2) < 40).mean() > 0.3  # and the picture
    assert len({tuple(pixel) for pixel in grey.reshape(-1, 3)[::7]}) == 2


def test_a_sample_without_features_has_its_place(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    train: Any = built("oscar_vqa", tmp_path, features={"train": "oscar/datasets/vqa/2k/val_img_frcnn_feats.pt"})
    view = view_of(train["train"])
    assert view is not None
    with pytest.raises(SampleError, match="no image '11'"):
        view.pictures(view.items(1, None)[0])
    with pytest.raises(SampleError, match="no picture belongs"):
        view.data(view.items(1, None)[0])


def test_names_that_an_id_may_stand_for() -> None:
    assert "COCO_val2014_000000000042.jpg" in names_of("42")
    assert "train-1-0-img0.png" in names_of("nlvr2_train-1-0-img0")
    for image_id in ("42", "000000000042", "COCO_val2014_000000000042", "coco_42"):
        assert {"000000000042.jpg", "COCO_train2014_000000000042.jpg"} <= set(names_of(image_id))
    assert not [name for name in names_of("n17") if name.startswith("COCO")]


def write_store(root: Path, labels: list[dict[str, Any]], boxes: int = 2) -> Path:
    """A store of COCO's image 42 (400 x 300), imported from rows in VinVL's form."""
    corners = np.array([[0.1, 0.2, 0.5, 0.9, 0.4, 0.7], [0.5, 0.1, 0.9, 0.6, 0.4, 0.5]], np.float32)[:boxes]
    rows = np.concatenate([np.zeros((boxes, 2048), np.float32), corners], 1)
    (root / "features.tsv").write_text(f"42\t{boxes}\t{b64(rows)}\n")
    tagged = json.dumps({"image_h": 300, "image_w": 400, "objects": labels})
    (root / "predictions.tsv").write_text(f"42\t{tagged}\n")
    import_features([root / "features.tsv"], root / "store")
    return root / "store"


LABELS: list[dict[str, Any]] = [
    {"class": "dog", "conf": 0.42, "rect": [40, 60, 200, 270]},
    {"class": "red ball", "conf": 0.975, "rect": [200, 30, 360, 180]},
]


def test_boxes_have_their_label_and_confidence(tmp_path: Path) -> None:
    record = open_store(write_store(tmp_path, LABELS)).at(0)
    found = regions_of(record)
    assert [one.label for one in found] == ["red ball 0.97", "dog 0.42"]
    assert found[1].box == pytest.approx((0.1, 0.2, 0.5, 0.9))
    assert region_line(record) == "2 regions: red ball 0.97, dog 0.42"
    named = draw_regions(record, None)
    bare = draw_regions(open_store(write_store((tmp_path / "b").mkdir() or tmp_path / "b", [])).at(0), None)
    written = (named != bare).any(2)
    top, left = round(0.2 * 570), round(0.1 * 760)  # the label of the dog stands above the corner of its box
    assert written[top - 24 : top, left : left + 60].mean() > 0.5
    assert written[top + 80 : top + 200, left + 20 : left + 200].mean() == 0


def test_more_labels_than_boxes_are_drawn_where_they_say(tmp_path: Path) -> None:
    third = {"class": "cat", "conf": 0.7, "rect": [0, 0, 100, 300]}
    found = regions_of(open_store(write_store(tmp_path, [*LABELS, third])).at(0))
    assert [(one.name, one.box) for one in found[:2]] == [
        ("red ball", pytest.approx((0.5, 0.1, 0.9, 0.6))),
        ("cat", pytest.approx((0, 0, 0.25, 1))),
    ]
    assert len(found) == 5


@pytest.mark.parametrize("labels", [[{"class": "x"}] * 2, [{"conf": "?", "rect": [1]}] * 3, [{"rect": [0, 0, 0, 0]}]])
def test_labels_that_lack_something_are_no_obstacle(labels: list[dict[str, Any]], tmp_path: Path) -> None:
    record = open_store(write_store(tmp_path, labels)).at(0)
    assert draw_regions(record, None).shape == (570, 760, 3)


def test_a_store_has_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_store(tmp_path, LABELS)
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (400, 300), (10, 200, 10)).save(tmp_path / "mine" / "000000000042.jpg")
    monkeypatch.chdir(tmp_path)
    assert main(["browse", str(store), "--images", "mine"]) == 0
    page = (tmp_path / "store.html").read_text()
    assert "2 regions: red ball 0.97, dog 0.42" in page and "400 × 300" in page and "oscar-tsv" in page
    assert page.count("data:image/jpeg;base64,") == 1
    (tmp_path / "nothing").mkdir()
    assert main(["browse", str(tmp_path / "nothing")]) == 2
    assert main(["browse", str(tmp_path / "mine")]) == 0  # a folder of pictures is data of one's own
