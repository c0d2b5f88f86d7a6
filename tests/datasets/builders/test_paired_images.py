"""The shapes `paired_images` and `image_text_label`: both pictures, the swap of sides, classes by number."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.config.schema import AnnotationConfig, BuildInfo, DatasetConfig, ImagesConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.datasets.builders.labels import PairDataset, swap_sides
from lavis_ext.datasets.readers import SampleError
from lavis_ext.processors.image import Normalizer
from tests.support.families import nlvr, nlvr_official, picture, snli_ve
from tests.support.pictures import write_json

SENTENCE = "The left image shows a dog, the right one none."


def splits(root: Path, name: str = "nlvr") -> Any:
    return build_datasets(load_cards().dataset(name), BuildContext(root))


def own(root: Path, rows: Any, builder: str = "paired_images", **args: Any) -> Any:
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        picture(root / "images", name, seed)
    write_json(root / "rows.json", rows)
    files = {"train": AnnotationConfig(storage=["rows.json"])}
    info = BuildInfo(annotations=files, images=ImagesConfig(storage="images"))
    config = DatasetConfig(name="mine", builder=builder, build_info=info, args={"labels": ["no", "yes"], **args})
    return build_datasets(config, BuildContext(root))["train"]


def test_training_swaps_pictures_and_words_together_half_of_the_time(tmp_path: Path) -> None:
    nlvr(tmp_path)
    train, val = splits(tmp_path)["train"], splits(tmp_path)["val"]
    straight, swapped = (
        "the left image shows a dog, the right one none",
        "the right image shows a dog, the left one none",
    )
    seen = [train.load(0, torch.Generator().manual_seed(seed))["text_input"] for seed in range(60)]
    assert set(seen) == {straight, swapped}
    assert 15 < seen.count(swapped) < 45
    assert {val.load(0, torch.Generator().manual_seed(seed))["text_input"] for seed in range(20)} == {straight}


def test_the_swap_moves_the_pictures(tmp_path: Path) -> None:
    rows = [{"images": ["a.jpg", "b.jpg"], "sentence": "left of right", "label": "yes"}]
    dataset = own(tmp_path, rows)
    plain = own(tmp_path / "plain", rows, swap=False)[0]
    for _ in range(20):
        sample = dataset[0]
        order = ("image0", "image1") if sample["text_input"] == "left of right" else ("image1", "image0")
        assert sample[order[0]].tobytes() == plain["image0"].tobytes()
        assert sample[order[1]].tobytes() == plain["image1"].tobytes()


def test_both_loads_give_the_same_pictures(tmp_path: Path) -> None:
    nlvr(tmp_path)
    val = splits(tmp_path)["val"]
    plain, raw = val[1], val.load(1, torch.Generator())
    for key in ("image0", "image1"):
        torch.testing.assert_close(Normalizer()(raw[key]), plain[key])
    assert not torch.equal(plain["image0"], plain["image1"])


def test_batch(tmp_path: Path) -> None:
    nlvr(tmp_path)
    train = splits(tmp_path)["train"]
    assert isinstance(train, PairDataset)
    batch = train.collater([train[i] for i in range(3)])
    assert batch["image0"].shape == batch["image1"].shape == (3, 3, 224, 224)
    assert batch["label"].tolist() == [1, 0, 1]
    assert batch["label"].dtype == torch.int64
    assert batch["instance_id"] == ["0", "1", "2"]
    assert train.class_labels == {"False": 0, "True": 1}
    assert train.displ_item(0)["file_L"] == "images/train/6/train-10-0-img0.png"


def test_official_records_name_their_pictures_by_identifier(tmp_path: Path) -> None:
    nlvr_official(tmp_path)
    built = splits(tmp_path)
    assert built["train"].row(1)["images"] == ["train/7/train-11-0-img0.png", "train/7/train-11-0-img1.png"]
    assert built["test"].row(2)["images"] == ["test1/test1-2-0-img0.png", "test1/test1-2-0-img1.png"]


@given(st.lists(st.sampled_from(["left", "right", " ", "leftmost", "bright", "x"])).map("".join))
def test_swapping_twice_gives_the_sentence_back(sentence: str) -> None:
    mirrored = swap_sides(sentence)
    assert mirrored.count("left") == sentence.count("right")
    assert swap_sides(mirrored) == sentence


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"images": ["a.jpg"], "sentence": "s", "label": "yes"}, "images are not two names"),
        ({"images": ["a.jpg", "c.jpg"], "sentence": "s", "label": "yes"}, "image is missing"),
        ({"images": ["a.jpg", "b.jpg"], "sentence": "s", "label": "maybe"}, "label 'maybe' is none of no, yes"),
        ({"images": ["a.jpg", "b.jpg"], "label": "yes"}, "sentence is missing"),
    ],
)
def test_a_bad_row_is_one_bad_sample(row: dict[str, Any], why: str, tmp_path: Path) -> None:
    dataset = own(tmp_path, [row, {"images": ["a.jpg", "b.jpg"], "sentence": "s", "label": "no"}])
    with pytest.raises(SampleError, match=why):
        dataset.load(0, torch.Generator())


def test_classes_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"datasets.mine.args.labels: names no classes"):
        own(tmp_path, [], labels=[])


def test_sentence_and_picture_with_a_class(tmp_path: Path) -> None:
    snli_ve(tmp_path)
    built = splits(tmp_path, "snli_ve")
    assert [built["val"][i]["label"] for i in range(3)] == [0, 1, 2]
    assert built["val"][1]["image_id"] == "1"
    shown = built["val"].displ_item(1)
    assert (list(shown), shown["file"], shown["label"]) == (["file", "sentence", "label", "image"], "1", "neutral")
    batch = built["train"].collater([built["train"][0], built["train"][2]])
    assert batch["label"].tolist() == [0, 2]


def test_a_row_without_a_class_is_a_sample_without_label(tmp_path: Path) -> None:
    dataset = own(tmp_path, [{"image": "a.jpg", "sentence": "s"}], builder="image_text_label")
    assert set(dataset[0]) == {"image", "text_input", "image_id", "instance_id"}
