"""Batches are padded to their longest members only, and hold what the stores hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavis_ext.common.errors import ConfigError, UsageError
from lavis_ext.features import NO_BOXES, PIXELS, FeatureRow, create_store, open_store
from lavis_ext.oscar.datasets.base import inputs, mask_rows, pad_rows
from lavis_ext.oscar.datasets.opening import find_labels
from lavis_ext.oscar.datasets.regions import RegionStores
from tests.support.features import make_image
from tests.support.region_data import features


def store(path: Path, counts: dict[str, int], dtype: str = "float32") -> dict[str, np.ndarray]:
    """A store of 2054 columns; returns what is in it."""
    arrays = {name: features(count, number) for number, (name, count) in enumerate(counts.items())}
    with create_store(path, dtype) as writer:
        for name, array in arrays.items():
            writer.append(FeatureRow(name, array))
    return arrays


def test_rows_are_padded_to_the_longest() -> None:
    assert pad_rows([[1, 2, 3], [4], []], 9).tolist() == [[1, 2, 3], [4, 9, 9], [9, 9, 9]]
    assert mask_rows([0, 2]).tolist() == [[0, 0], [1, 1]]
    assert mask_rows([0, 0], least=1).tolist() == [[0], [0]]
    assert pad_rows([[], []], 0).shape == (2, 0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_inputs(tmp_path: Path, dtype: str) -> None:
    arrays = store(tmp_path / "s", {"a": 3, "b": 7, "c": 0}, dtype)
    regions = RegionStores((open_store(tmp_path / "s"),), most=5)
    samples: list[Any] = [
        {"input_ids": [2, 5, 3], "token_type_ids": [0, 0, 0], "regions": regions.find("a")},
        {"input_ids": [2, 3], "token_type_ids": [0, 1], "regions": regions.find("b")},
        {"input_ids": [2, 6, 7, 3], "token_type_ids": [0] * 4, "regions": regions.find("c")},
    ]
    batch = inputs(samples, regions, pad=0)
    assert batch["input_ids"].tolist() == [[2, 5, 3, 0], [2, 3, 0, 0], [2, 6, 7, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [
        [1, 1, 1, 0, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
    ]
    feats = batch["img_feats"].numpy()
    assert feats.shape == (3, 5, 2054)
    assert feats.dtype == np.float32
    assert np.array_equal(feats[0, :3], arrays["a"].astype(dtype).astype(np.float32))
    assert np.array_equal(feats[1], arrays["b"][:5].astype(dtype).astype(np.float32))
    assert not feats[0, 3:].any()
    assert not feats[2].any()


def test_a_batch_without_any_region_keeps_a_masked_place(tmp_path: Path) -> None:
    store(tmp_path / "s", {"a": 0, "b": 1})
    regions = RegionStores((open_store(tmp_path / "s"),))
    batch = inputs([{"input_ids": [2, 3], "token_type_ids": [0, 0], "regions": regions.find("a")}], regions, 0)
    assert batch["attention_mask"].tolist() == [[1, 1, 0]]
    assert batch["img_feats"].shape == (1, 1, 2054)


def test_samples_with_tensors_give_the_same_batch(tmp_path: Path) -> None:
    """What `dataset[i]` gives can be collated as well as what `dataset.load` gives."""
    store(tmp_path / "s", {"a": 3, "b": 6})
    regions = RegionStores((open_store(tmp_path / "s"),), most=4)
    places: list[Any] = [
        {"input_ids": [2], "token_type_ids": [0], "regions": regions.find(name)} for name in ("a", "b")
    ]
    plain: list[Any] = [
        {"input_ids": [2], "token_type_ids": [0], "img_feats": torch.from_numpy(regions.array(one["regions"]))}
        for one in places
    ]
    first, second = inputs(places, regions, 0), inputs(plain, regions, 0)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_stores_are_asked_in_turn_and_ids_found_by_their_numbers(tmp_path: Path) -> None:
    store(tmp_path / "one", {"COCO_val2014_000000000009": 2})
    store(tmp_path / "two", {"17": 4})
    regions = RegionStores((open_store(tmp_path / "one"), open_store(tmp_path / "two")), most=3)
    assert (regions.find(9).store, regions.find(9).size) == (0, 2)
    assert (regions.find("000017").store, regions.find("000017").size) == (1, 3)
    with pytest.raises(UsageError, match="no image '18' among 2"):
        regions.find(18)


def test_appearance_alone_gets_its_box_columns(tmp_path: Path) -> None:
    image = make_image("x", 4, 2048, seed=3)
    with create_store(tmp_path / "s") as writer:
        writer.append(image.row())
    regions = RegionStores((open_store(tmp_path / "s"),))
    rows = regions.array(regions.find("x"))
    assert np.array_equal(rows[:, :2048], image.features)
    scaled = image.boxes / [640, 480, 640, 480]
    assert np.allclose(rows[:, 2048:], np.concatenate([scaled, scaled[:, 2:] - scaled[:, :2]], 1), atol=1e-6)
    whole = RegionStores((open_store(tmp_path / "s"),), columns=2048)
    assert np.array_equal(whole.array(whole.find("x")), image.features)


def test_the_appearance_of_whole_rows(tmp_path: Path) -> None:
    arrays = store(tmp_path / "s", {"a": 3})
    regions = RegionStores((open_store(tmp_path / "s"),), columns=2048)
    assert np.array_equal(regions.array(regions.find("a")), arrays["a"][:, :2048])


def test_rows_that_cannot_fit_are_refused(tmp_path: Path) -> None:
    with create_store(tmp_path / "bare") as writer:
        writer.append(FeatureRow("a", np.ones((2, 2048), np.float32), None, NO_BOXES))
    with pytest.raises(ConfigError, match="rows of 2048 numbers, without boxes, where 2054"):
        RegionStores((open_store(tmp_path / "bare"),))
    with create_store(tmp_path / "unsized") as writer:
        writer.append(FeatureRow("a", np.ones((2, 2048), np.float32), np.ones((2, 4), np.float32), PIXELS))
    with pytest.raises(UsageError, match="no boxes in a known size"):
        RegionStores((open_store(tmp_path / "unsized"),)).find("a")


def test_labels_in_another_of_their_folders(tmp_path: Path) -> None:
    there = tmp_path / "GQA/0.4true/labels.pkl"
    there.parent.mkdir(parents=True)
    there.touch()
    assert find_labels(tmp_path / "GQA/questions1.2/labels.pkl") == there
    assert find_labels(tmp_path / "GQA/labels.pkl") == there
    assert find_labels(there) == there
    for absent in ("GQA/questions1.2/other.pkl", "vqa/cache/labels.pkl", "vqa/labels.pkl"):
        assert find_labels(tmp_path / absent) == tmp_path / absent
