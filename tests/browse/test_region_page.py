"""Pages of data sets on region features: texts, tags, answers and boxes, with and without pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis_ext.browse.dataset_page import write_dataset_page
from lavis_ext.browse.views import view_of
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.oscar.datasets.pages import names_of
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
    assert own.shape == (60, 80, 3)
    assert grey.shape == (480, 640, 3)
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
    assert not [name for name in names_of("n17") if name.startswith("COCO")]
