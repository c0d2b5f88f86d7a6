"""Lengths of samples on region features: from columns and indices alone, in the order of what batches are padded to."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis_ext.datasets.mixture import Mixture
from lavis_ext.features.store import FeatureStore
from tests.support.region_data import (
    built,
    write,
    write_captions,
    write_corpus,
    write_gqa,
    write_ir,
    write_nlvr2,
    write_vqa,
)

VQA = "oscar/datasets/vqa"


def regions_of(dataset: Any, index: int) -> int:
    """How many regions the sample really has, of two images the larger number."""
    feats = dataset[index]["img_feats"]
    return max(map(len, feats)) if isinstance(feats, list) else len(feats)


def longest(ids: list[Any]) -> int:
    """Tokens of one input, or of the longer of two."""
    return max(map(len, ids)) if isinstance(ids[0], list) else len(ids)


def test_vqa_counts_are_those_of_the_samples(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    train: Any = built("oscar_vqa", tmp_path)["train"]
    assert train.lengths.dtype == np.int32
    assert train.lengths[:, 0].tolist() == [regions_of(train, i) for i in range(3)] == [3, 1, 8]
    # "what is red ?" and "cat;dog;red ball" are 4 and 4 words; an empty text counts as one
    assert train.lengths[:, 1].tolist() == [11, 9, 10]
    assert [train.length(i) for i in (0, 1, 2, -1)] == [14, 10, 18, 18]
    with pytest.raises(IndexError):
        train.length(3)


def test_arguments_cut_lengths_as_they_cut_samples(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    args: dict[str, Any] = {"max_img_seq_length": 2, "max_seq_length": 10}
    train: Any = built("oscar_vqa", tmp_path, **args)["train"]
    assert train.lengths.tolist() == [[2, 10], [1, 9], [2, 10]]
    bare: Any = built("oscar_vqa", tmp_path, add_od_labels=False)["train"]
    assert bare.lengths[:, 1].tolist() == [7, 8, 8]


def test_gqa_finds_each_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen million questions are about a hundred thousand images: the index is asked for those alone."""
    write_gqa(tmp_path)
    rows = [{"q": "is it" + " red" * (i % 5), "o": "cat", "an": [7], "img_id": f"n{i % 3}"} for i in range(300)]
    write(tmp_path / "oscar/datasets/GQA/0.4true/gqa_bal_qla_train.json", rows)
    train: Any = built("oscar_gqa", tmp_path)["train"]
    asked: list[Any] = []
    regions = type(train.parts.regions)
    count = regions.count

    def counted(self: Any, image_id: Any) -> int:
        asked.append(image_id)
        return int(count(self, image_id))

    monkeypatch.setattr(regions, "count", counted)
    assert train.lengths.tolist() == [[(2, 4, 3)[i % 3], 2 + i % 5 + 1 + 3] for i in range(300)]
    assert sorted(asked) == ["n0", "n1", "n2"]


def test_pairs_have_the_larger_image(tmp_path: Path) -> None:
    write_nlvr2(tmp_path)
    train: Any = built("oscar_nlvr2", tmp_path)["train"]
    assert train.lengths[:, 0].tolist() == [regions_of(train, i) for i in range(3)] == [2, 3, 4]
    assert len(set(train.lengths[:, 1])) == 1
    assert abs(train.lengths[0, 1] - longest(train[0]["input_ids"])) <= 3


def test_captions_have_three_parts(tmp_path: Path) -> None:
    write_captions(tmp_path)
    splits = built("oscar_coco_caption", tmp_path)
    train: Any = splits["train"]
    assert train.lengths.shape == (6, 3)
    assert train.lengths[:, 0].tolist() == [regions_of(train, i) for i in range(6)]
    assert train.lengths[:, 1].tolist() == [3, 1, 1, 0, 0, 0]
    assert (train.lengths[:, 2] - 1).tolist() == [len(train[i]["input_ids"]) for i in range(6)]
    assert splits["val"].lengths is None  # type: ignore[attr-defined]


def test_what_is_drawn_by_chance_has_none(tmp_path: Path) -> None:
    write_ir(tmp_path)
    write_corpus(tmp_path)
    pairs: Any = built("oscar_coco_ir", tmp_path)["train"]
    corpus: Any = built("oscar_pretrain", tmp_path)["train"]
    for dataset in (pairs, corpus):
        assert dataset.lengths is None
        assert dataset.length(0) == 0
        assert len(list(Mixture({"a": dataset}, batch_size=4, num_workers=0, group_by_length=True))) > 0


def test_an_image_without_features_has_no_regions(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    rows = [{"q": "is it", "o": "", "an": [7], "s": [1], "img_id": name} for name in (11, 999, None)]
    write(tmp_path / f"{VQA}/2k/train2014_qla_mrcnn.json", rows)
    train: Any = built("oscar_vqa", tmp_path)["train"]
    assert train.lengths[:, 0].tolist() == [3, 0, 0]


def test_no_features_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vqa(tmp_path)
    train: Any = built("oscar_vqa", tmp_path)["train"]

    def refuse(*_: Any) -> None:
        raise AssertionError("features were read")

    for name in ("at", "read_row_into", "will_need"):
        monkeypatch.setattr(FeatureStore, name, refuse)
    assert train.lengths[:, 0].tolist() == [3, 1, 8]


def test_max_samples_and_pickling(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    train: Any = built("oscar_vqa", tmp_path)["train"]
    again = pickle.loads(pickle.dumps(train))
    assert again.lengths.tolist() == train.lengths.tolist()
    config = replace(train.parts.config, max_samples={"train": 2})
    few = replace(train, parts=replace(train.parts, config=config))
    assert len(few) == 2
    assert few.lengths.tolist() == train.lengths[:2].tolist()


def test_batches_of_real_samples_are_narrower(tmp_path: Path) -> None:
    """Through builder, mixture and collater: each record once, and less padding."""
    write_vqa(tmp_path)
    rng = np.random.default_rng(0)
    rows = [
        {"q": "is " * rng.integers(1, 12), "o": ";".join(["cat"] * rng.integers(1, 12)), "an": [7], "s": [1.0]}
        | {"img_id": int(rng.integers(11, 17))}
        for _ in range(480)
    ]
    write(tmp_path / f"{VQA}/2k/train2014_qla_mrcnn.json", rows)
    train: Any = built("oscar_vqa", tmp_path)["train"]
    widths, held = {}, {}
    for group in (False, True):
        batches = list(Mixture({"vqa": train}, batch_size=8, num_workers=0, group_by_length=group))
        widths[group] = np.mean([batch["attention_mask"].shape[1] for batch in batches])
        held[group] = sorted(int(one) for batch in batches for one in batch["instance_id"])
    assert held[True] == held[False] == list(range(480))
    assert widths[True] < 0.8 * widths[False]
