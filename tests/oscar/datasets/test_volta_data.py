"""volta's data sets: captions, four options of which one is hard, locations in five or seven numbers."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavis_ext.common.errors import ConfigError, IntegrityError, UnsafeError
from lavis_ext.datasets.builders import NotPreparedError
from tests.support.region_data import CLS, SEP, built, captions, ids, write, write_volta

CAPTION, RETRIEVAL = "volta_coco_caption", "volta_coco_retrieval"


def load(dataset: Any, index: int, seed: int = 0) -> Any:
    return dataset.load(index, torch.Generator().manual_seed(seed))


def locs_of(image: Any, count: int) -> np.ndarray:
    """Locations written out from the definition."""
    rows = []
    for x1, y1, x2, y2 in image.boxes.tolist():
        sides = [(x2 - x1) / 640, (y2 - y1) / 480]
        area = [sides[0] * sides[1]]
        rows.append([x1 / 640, y1 / 480, x2 / 640, y2 / 480, *(sides if count == 7 else []), *area])
    return np.array(rows)


def test_captions(tmp_path: Path) -> None:
    images = write_volta(tmp_path)
    splits = built(CAPTION, tmp_path)
    assert {split: len(data) for split, data in splits.items()} == {"train": 19, "val": 2, "test": 2, "test1k": 1}
    train = splits["train"]
    sample: Any = train[4]
    assert sample["input_ids"] == [CLS, *ids(captions(2, 4)[1]), SEP]
    assert sample["text_input"] == captions(2, 4)[1]
    assert np.array_equal(sample["features"].numpy(), images[1].features)
    assert np.allclose(sample["locs"], locs_of(images[1], 5), atol=1e-6)
    batch = train.collater([load(train, index) for index in (0, 4, 18)])
    longest = max(len(load(train, index)["input_ids"]) for index in (0, 4, 18))
    assert batch["input_ids"].shape == batch["input_mask"].shape == (3, longest)
    assert batch["features"].shape == (3, 3, 2048)
    assert batch["locs"].shape == (3, 3, 5)
    assert batch["image_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert torch.equal(batch["attention_mask"], torch.cat([batch["input_mask"], batch["image_mask"]], 1))
    assert np.array_equal(batch["features"][1].numpy(), images[1].features)
    assert not batch["features"][2, 1:].any()
    assert batch["image_id"] == [1, 2, 6]
    assert splits["val"].references() == {7: captions(7, 3), 8: captions(8, 3)}


@pytest.mark.parametrize(("count", "where"), [(5, None), (7, None), (5, "first"), (7, "last"), (7, "first")])
def test_locations_and_the_whole_image(tmp_path: Path, count: int, where: str | None) -> None:
    images = write_volta(tmp_path)
    train = built(CAPTION, tmp_path, num_locs=count, add_global_imgfeat=where)["train"]
    sample: Any = train[4]
    locs, features = locs_of(images[1], count), images[1].features
    if where:
        whole = np.array([[0, 0, *[1] * (count - 2)]])
        locs = np.concatenate([whole, locs] if where == "first" else [locs, whole])
        mean = features.mean(0, keepdims=True)
        features = np.concatenate([mean, features] if where == "first" else [features, mean])
    assert np.allclose(sample["locs"], locs, atol=1e-6)
    assert np.allclose(sample["features"], features, atol=1e-6)
    again = train.collater([sample])
    assert torch.equal(again["features"][0], sample["features"])
    assert torch.equal(again["locs"][0], sample["locs"])


def test_scaled_features(tmp_path: Path) -> None:
    write_volta(tmp_path)
    sample: Any = built(CAPTION, tmp_path, norm_embeddings=True)["train"][4]
    assert np.allclose(np.linalg.norm(sample["features"], axis=1), 1, atol=1e-5)


def test_four_options(tmp_path: Path) -> None:
    write_volta(tmp_path)
    train = built(RETRIEVAL, tmp_path)["train"]
    batch = train.collater([load(train, index) for index in (0, 4, 9)])
    assert batch["labels"].tolist() == [0, 0, 0]
    assert batch["input_ids"].shape[:2] == batch["attention_mask"].shape[:2] == (3, 4)
    assert batch["features"].shape == (3, 4, 3, 2048)
    assert batch["locs"].shape == (3, 4, 3, 5)
    assert batch["image_id"] == [1, 2, 3]
    assert torch.equal(batch["features"][:, 0], batch["features"][:, 1])
    assert torch.equal(batch["features"][:, 0], batch["features"][:, 3])
    assert torch.equal(batch["input_ids"][:, 0], batch["input_ids"][:, 2])
    sample: Any = train[4]
    assert [len(one) for one in (sample["input_ids"], sample["features"], sample["locs"])] == [4, 4, 4]
    again = train.collater([sample])
    assert again["features"].shape == (1, 4, 3, 2048)


def test_negatives_come_from_where_they_should(tmp_path: Path) -> None:
    """Every image's captions are drawn, not those of the first ones, and the hard ones follow the pool."""
    write_volta(tmp_path)
    train = built(RETRIEVAL, tmp_path)["train"]
    owner = {tuple(ids(text)): key for key in range(1, 7) for text in captions(key, 4)}
    places = {train.parts.regions.find(key): key for key in range(1, 11)}
    pool = {5: {1, 2}, 1: {2, 3}, 2: {3, 4}, 3: {4, 6}, 4: {6}, 6: {5}}  # without 99, which has no captions here
    drawn: dict[str, Counter[int]] = {name: Counter() for name in ("caption", "image", "hard")}
    for seed in range(1900):
        sample = load(train, seed % 19, seed)
        own = sample["image_id"]
        texts = [owner[tuple(one[1:-1])] for one in sample["input_ids"]]
        images = [places[place] for place in sample["regions"]]
        assert (texts[0], texts[2]) == (own, own)
        assert (images[0], images[1], images[3]) == (own, own, own)
        assert own not in (texts[1], images[2], texts[3])
        assert texts[3] in pool[own]
        for name, other in (("caption", texts[1]), ("image", images[2]), ("hard", texts[3])):
            drawn[name][other] += 1
    assert min(drawn["caption"].values()) > 230
    assert min(drawn["image"].values()) > 230
    assert set(drawn["hard"]) == set(range(2, 7)) | {1}
    chosen = Counter(tuple(load(train, 0, seed)["input_ids"][1]) for seed in range(600))
    assert len(chosen) == 3 * 4 + 4  # every caption of the five other images


def test_without_hard_negatives(tmp_path: Path) -> None:
    write_volta(tmp_path, hard=False)
    assert list(built(RETRIEVAL, tmp_path)) == ["val", "test", "test1k"]
    train = built(RETRIEVAL, tmp_path, hard_negatives=None)["train"]
    assert len({tuple(load(train, 0, seed)["input_ids"][3]) for seed in range(300)}) == 16


def test_ranking(tmp_path: Path) -> None:
    write_volta(tmp_path)
    val = built(RETRIEVAL, tmp_path)["val"]
    assert len(val.captions) == 6
    assert val.caption_image.tolist() == [0, 0, 0, 1, 1, 1]
    assert val.candidates(0) is None
    batch = val.collater([load(val, 0), load(val, 1)])
    assert batch["features"].shape == (2, 3, 2048)
    assert (batch["image_id"], batch["index"]) == ([7, 8], [0, 1])
    assert val.encode_pair(val.captions[0], [])["input_ids"] == [CLS, *ids(captions(7, 3)[0]), SEP]
    first: Any = val[0]
    assert first["features"].shape == (2, 2048)


def test_oscar_shapes_read_volta_files_too(tmp_path: Path) -> None:
    """2048 numbers and boxes become Oscar's 2054."""
    from dataclasses import replace

    from lavis_ext.common.config.cards import load_cards
    from lavis_ext.datasets.builders import BuildContext, build_datasets

    images = write_volta(tmp_path)
    config = load_cards().dataset(RETRIEVAL)
    store = "mscoco/imgfeats/volta/trainval_feat.store"
    args = {"features": store, "add_od_labels": False, "max_seq_length": 30}
    train: Any = build_datasets(replace(config, builder="region_retrieval", args=args), BuildContext(tmp_path))["train"]
    feats = train[0]["img_feats"][0].numpy()
    assert feats.shape == (2, 2054)
    assert np.array_equal(feats[:, :2048], images[0].features)
    assert np.allclose(feats[:, 2048:2052], locs_of(images[0], 5)[:, :4], atol=1e-6)


def test_rows_stand_for_the_store(tmp_path: Path) -> None:
    from tests.support.features import VOLTA, csv_tsv

    images = write_volta(tmp_path)
    stored: Any = built(CAPTION, tmp_path)["train"][4]
    import shutil

    shutil.rmtree(tmp_path / "mscoco/imgfeats/volta")
    with pytest.raises(NotPreparedError, match=r"holds neither train2014_obj36-36\.tsv nor"):
        built(CAPTION, tmp_path)
    csv_tsv(tmp_path / "mscoco/imgfeats/train2014_obj36-36.tsv", images[:5], VOLTA)
    csv_tsv(tmp_path / "mscoco/imgfeats/val2014_obj36-36.tsv", images[5:], VOLTA)
    again: Any = built(CAPTION, tmp_path)["train"][4]
    assert torch.equal(again["features"], stored["features"])
    assert torch.equal(again["locs"], stored["locs"])


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"train_image_list": [1]}, IntegrityError, "has no train_image_list and train_hard_pool"),
        ({"train_image_list": [1, 2], "train_hard_pool": [[0, 1]]}, IntegrityError, "does not fit 2 images"),
        ({"train_image_list": [1], "train_hard_pool": [[0, 1]]}, IntegrityError, "does not fit 1 images"),
        ({"train_image_list": [1], "train_hard_pool": [["a", "b"]]}, IntegrityError, "no table of numbers"),
        ([1], IntegrityError, "has no train_image_list"),
        (Path, UnsafeError, "not only data"),
    ],
)
def test_pools_that_are_none(tmp_path: Path, value: Any, error: type[Exception], message: str) -> None:
    write_volta(tmp_path)
    write(tmp_path / "mscoco/hard_negative.pkl", pickle.dumps(value))
    with pytest.raises(error, match=message):
        built(RETRIEVAL, tmp_path)


def test_arguments_and_lines(tmp_path: Path) -> None:
    write_volta(tmp_path)
    with pytest.raises(ConfigError, match=r"args\.num_locs"):
        built(CAPTION, tmp_path, num_locs=6)
    with pytest.raises(ConfigError, match="add_global_imgfeat"):
        built(CAPTION, tmp_path, add_global_imgfeat="middle")
    write(tmp_path / "mscoco/annotations/valid_ann.jsonl", b'{"sentences": ["a"]}\n')
    with pytest.raises(IntegrityError, match=r"valid_ann\.jsonl:1: has no id"):
        built(CAPTION, tmp_path)
