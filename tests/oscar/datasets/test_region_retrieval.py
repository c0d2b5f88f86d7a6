"""Retrieval on COCO in both published layouts: pairs to train on, images and captions to rank."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.oscar.datasets.retrieval import other_than
from tests.support.region_data import CLS, SEP, built, captions, ids, save_pt, write, write_ir

DATA = "oscar/datasets/coco_ir"


def load(dataset: Any, index: int, seed: int = 0) -> Any:
    return dataset.load(index, torch.Generator().manual_seed(seed))


def test_one_sample_for_each_caption_in_use(tmp_path: Path) -> None:
    write_ir(tmp_path)
    train = built("oscar_coco_ir", tmp_path)["train"]
    assert len(train) == 6 * 5  # of the image with six captions, five
    fewer = built("oscar_coco_ir", tmp_path, num_captions_per_img_train=2)["train"]
    assert [load(fewer, i)["image_id"] for i in range(len(fewer))] == [k for k in range(11, 17) for _ in range(2)]


def test_a_training_item(tmp_path: Path) -> None:
    write_ir(tmp_path)
    train = built("oscar_coco_ir", tmp_path)["train"]
    sample = load(train, 7)  # the third caption of image 12
    assert sample["input_ids"][0] == [CLS, *ids(captions(12, 5)[2]), SEP, *ids("cat tree"), SEP]
    assert sample["labels"] == [1, 0]
    assert (sample["image_id"], sample["instance_id"]) == (12, "7")
    batch = train.collater([load(train, index) for index in (0, 7, 29)])
    assert batch["labels"].tolist() == [1, 0, 1, 0, 1, 0]
    assert batch["input_ids"].shape == batch["token_type_ids"].shape
    assert len(batch["input_ids"]) == len(batch["attention_mask"]) == len(batch["img_feats"]) == 6
    assert batch["image_id"] == [11, 12, 16]
    assert len(train[7]["img_feats"]) == 2


def test_negatives_are_of_another_image_half_by_caption_half_by_image(tmp_path: Path) -> None:
    write_ir(tmp_path)
    train = built("oscar_coco_ir", tmp_path)["train"]
    kinds: Counter[str] = Counter()
    others: Counter[int] = Counter()
    rows = {tuple(ids(text)): key for key in range(11, 17) for text in captions(key, 5)}
    places = {train.parts.regions.find(key): key for key in range(11, 17)}
    for seed in range(1200):
        index = seed % len(train)
        sample = load(train, index, seed)
        own = sample["image_id"]
        texts = [tuple(one[1 : one.index(SEP)]) for one in sample["input_ids"]]
        images = [places[place] for place in sample["regions"]]
        assert (rows[texts[0]], images[0]) == (own, own)
        assert texts[1] == texts[0] or images[1] == own
        kind = "caption" if images[1] == own else "image"
        kinds[kind] += 1
        other = rows[texts[1]] if kind == "caption" else images[1]
        assert other != own
        others[other] += 1
    assert abs(kinds["caption"] / 1200 - 0.5) < 0.05
    assert min(others.values()) > 140  # 1200 / 6 = 200 each


def test_other_than_is_uniform() -> None:
    rng = torch.Generator().manual_seed(0)
    drawn = Counter(other_than(2, 5, rng) for _ in range(4000))
    assert set(drawn) == {0, 1, 3, 4}
    assert all(abs(count - 1000) < 120 for count in drawn.values())
    assert other_than(0, 2, rng) == 1
    assert other_than(1, 2, rng) == 0


def test_the_same_generator_gives_the_same_item(tmp_path: Path) -> None:
    write_ir(tmp_path)
    train = built("oscar_coco_ir", tmp_path)["train"]
    assert [load(train, 4, seed) for seed in range(8)] == [load(train, 4, seed) for seed in range(8)]


def test_images_and_captions_to_rank(tmp_path: Path) -> None:
    write_ir(tmp_path)
    val = built("oscar_coco_ir", tmp_path)["val"]
    assert (len(val), len(val.captions)) == (3, 15)
    assert val.caption_image.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert val.caption_keys[6] == (22, 1)
    assert val.captions[6] == ids(captions(22, 5)[1])
    assert val.candidates(1).tolist() == [0, 5, 10, 1, 6, 11]
    sample = load(val, 1)
    assert sample["tag_ids"] == ids("dog red ball")
    assert (sample["image_id"], sample["index"]) == (22, 1)
    batch = val.collater([load(val, index) for index in range(3)])
    assert batch["img_feats"].shape == (3, 6, 2054)
    assert batch["img_mask"].sum(1).tolist() == [2, 4, 6]
    assert batch["index"] == [0, 1, 2]
    assert batch["tag_ids"] == [ids("dog red ball")] * 3
    pair = val.encode_pair(val.captions[6], sample["tag_ids"])
    assert pair["input_ids"] == [CLS, *val.captions[6], SEP, *ids("dog red ball"), SEP]
    assert len(pair["token_type_ids"]) == len(pair["input_ids"])


def test_the_images_that_a_file_names(tmp_path: Path) -> None:
    write_ir(tmp_path)
    whole = built("oscar_coco_ir", tmp_path)["test"]
    assert whole.candidates(0) is None
    assert (whole.img_keys_file, len(whole)) == (None, 3)
    some = built("oscar_coco_ir", tmp_path, eval_img_keys_file="test_img_keys_1k.tsv")
    test = some["test"]
    assert [load(test, index)["image_id"] for index in range(len(test))] == [33, 31]
    assert test.caption_keys[0] == (33, 0)
    assert test.img_keys_file == tmp_path / DATA / "test_img_keys_1k.tsv"
    assert some["val"].img_keys_file is None
    write(tmp_path / DATA / "mine.tsv", b"31\n77\n")
    strange = built("oscar_coco_ir", tmp_path, eval_img_keys_file={"test": "mine.tsv"})["test"]
    with pytest.raises(IntegrityError, match="names image '77'"):
        len(strange)


def test_vinvl_layout(tmp_path: Path) -> None:
    write_ir(tmp_path, "vinvl")
    splits = built("oscar_coco_ir", tmp_path, "vinvl")
    sample = load(splits["train"], 0)
    assert sample["input_ids"][0][-4:] == [*ids("cat red ball"), SEP]
    assert load(splits["val"], 0)["tag_ids"] == ids("cat red ball")
    feats = splits["val"][1]["img_feats"]
    assert feats.shape == (22 % 4 + 1, 2054)
    bare = built("oscar_coco_ir", tmp_path, "vinvl", add_od_labels=False)
    assert load(bare["val"], 0)["tag_ids"] == []
    assert load(bare["train"], 0)["input_ids"][0][-1] == SEP
    assert load(bare["train"], 0)["token_type_ids"][0].count(1) == 0


def test_tags_of_one_detector_do_not_go_with_regions_of_another(tmp_path: Path) -> None:
    write_ir(tmp_path)
    write_ir(tmp_path, "vinvl")
    file = "vinvl/image_features/" + next((tmp_path / "vinvl/image_features").iterdir()).name
    features = f"{file}/model_0060000/features.tsv"
    with pytest.raises(ConfigError) as caught:
        built("oscar_coco_ir", tmp_path, features=features)
    assert caught.value.problems[0].where.startswith("datasets.oscar_coco_ir.args.features train")
    assert load(built("oscar_coco_ir", tmp_path, "vinvl", features=features)["val"], 0)["tag_ids"] == ids(
        "cat red ball"
    )
    assert built("oscar_coco_ir", tmp_path, features=features, add_od_labels=False)["val"]


def test_both_layouts_have_the_same_captions(tmp_path: Path) -> None:
    write_ir(tmp_path)
    write_ir(tmp_path, "vinvl")
    one, other = built("oscar_coco_ir", tmp_path)["val"], built("oscar_coco_ir", tmp_path, "vinvl")["val"]
    assert one.captions == other.captions
    assert np.array_equal(one.caption_image, other.caption_image)


def test_an_image_without_features_is_a_fault_also_as_a_negative(tmp_path: Path) -> None:
    write_ir(tmp_path)
    told = torch.load(tmp_path / DATA / "train_captions.pt", weights_only=True)
    save_pt(tmp_path / DATA / "train_captions.pt", {11: told[11], 99: captions(99, 5)})
    train = built("oscar_coco_ir", tmp_path)["train"]
    with pytest.raises(SampleError, match="no image '99'"):
        load(train, 5)
    faults = 0
    for seed in range(40):
        try:
            load(train, 0, seed)
        except SampleError as error:
            faults += 1
            assert error.sample_id == "oscar_coco_ir/train#0"
    assert 8 < faults < 32


@pytest.mark.parametrize(
    ("value", "message"),
    [({11: ["one"]}, "fewer than two images"), ({11: [], 12: ["x"]}, "an image without captions")],
)
def test_captions_of_which_no_pair_can_be_made(tmp_path: Path, value: Any, message: str) -> None:
    write_ir(tmp_path)
    save_pt(tmp_path / DATA / "train_captions.pt", value)
    with pytest.raises(IntegrityError, match=message):
        len(built("oscar_coco_ir", tmp_path)["train"])


@pytest.mark.parametrize("value", ["no json", 5, [1], {"a": 1}])
def test_captions_that_are_none(tmp_path: Path, value: Any) -> None:
    write_ir(tmp_path)
    save_pt(tmp_path / DATA / "minival_captions.pt", {21: value})
    with pytest.raises(IntegrityError, match="image 21"):
        built("oscar_coco_ir", tmp_path)


def test_candidates_that_are_not_there(tmp_path: Path) -> None:
    write_ir(tmp_path)
    path = tmp_path / DATA / "minival_caption_indexs_top20.pt"
    save_pt(path, {key: [[key, 9]] for key in (21, 22, 23)})
    with pytest.raises(IntegrityError, match="names captions that are not there"):
        built("oscar_coco_ir", tmp_path)["val"].candidates(0)
    save_pt(path, {21: [[21, 0]]})
    with pytest.raises(IntegrityError, match="has no candidates for image '22'"):
        built("oscar_coco_ir", tmp_path)["val"].candidates(0)
    save_pt(path, {21: "[[21]]"})
    with pytest.raises(IntegrityError, match="has no list of"):
        built("oscar_coco_ir", tmp_path)["val"].candidates(0)


def test_masks_that_are_not_built(tmp_path: Path) -> None:
    write_ir(tmp_path)
    with pytest.raises(ConfigError, match=r"args\.att_mask_type"):
        built("oscar_coco_ir", tmp_path, att_mask_type="CR")
