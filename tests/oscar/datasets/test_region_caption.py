"""Captioning from the YAML files of Oscar and VinVL: what is hidden, who sees whom, what is handed to a decoder."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.datasets.builders import NotPreparedError
from lavis_ext.oscar.datasets.base import choose_positions, hide
from lavis_ext.oscar.datasets.caption import seq2seq_mask
from lavis_ext.oscar.wordpiece import load_wordpiece
from tests.support.region_data import CLS, MASK, PAD, SEP, VOCAB, built, ids, write, write_captions, write_vocab


def load(dataset: Any, index: int, seed: int = 0) -> Any:
    return dataset.load(index, torch.Generator().manual_seed(seed))


@pytest.fixture
def splits(tmp_path: Path) -> Any:
    write_captions(tmp_path)
    return built("oscar_coco_caption", tmp_path)


def unmasked(sample: Any) -> list[int]:
    """The caption as it was before words were hidden."""
    whole = list(sample["input_ids"])
    for place, word in zip(sample["masked_pos"], sample["masked_ids"], strict=True):
        whole[place] = word
    return whole


def test_a_training_sample(splits: Any) -> None:
    train = splits["train"]
    assert len(train) == 1 + 2 + 3
    sample = load(train, 2)  # the second caption of image 11
    assert unmasked(sample) == [CLS, *ids("two red ball"), SEP]
    assert sample["od_ids"] == [*ids("tree"), SEP]
    assert (sample["image_id"], sample["instance_id"]) == (11, "2")
    assert load(train, 0)["od_ids"] == [*ids("cat red ball"), SEP]
    assert load(train, 5)["od_ids"] == []


def test_how_many_words_are_hidden(tmp_path: Path) -> None:
    folder = write_captions(tmp_path)
    texts = ["cat", " ".join(["cat"] * 18), " ".join(["cat"] * 60)]
    write(folder / "train_caption.json", [{"image_id": "10", "caption": text} for text in texts])
    train = built("oscar_coco_caption", tmp_path)["train"]
    for index, (length, hidden) in enumerate(((3, 1), (20, 3), (40, 3))):  # max(1, round(.15 · n)), at most 3
        sample = load(train, index)
        assert len(sample["input_ids"]) == length
        assert len(sample["masked_pos"]) == len(sample["masked_ids"]) == hidden
        assert sample["masked_pos"] == sorted(set(sample["masked_pos"]))
    places = Counter(place for seed in range(600) for place in load(train, 0, seed)["masked_pos"])
    assert set(places) == {1, 2}  # the word or its [SEP], never [CLS]
    assert abs(places[1] - 300) < 60


def test_eighty_ten_ten(tmp_path: Path) -> None:
    words = load_wordpiece(write_vocab(tmp_path))
    rng = torch.Generator().manual_seed(0)
    cat = ids("cat")[0]
    drawn = [hide([CLS, cat, SEP], [1], words, rng) for _ in range(4000)]
    assert all(one[0] == CLS and one[2] == SEP for one in drawn)
    counts = Counter("mask" if one[1] == MASK else "same" if one[1] == cat else "other" for one in drawn)
    share = 0.1 / len(VOCAB)  # a random word may be the very one, or [MASK]
    assert counts["mask"] / 4000 == pytest.approx(0.8 + share, abs=0.025)
    assert counts["same"] / 4000 == pytest.approx(0.1 + share, abs=0.02)
    assert choose_positions([5, 7, 9], 3, rng) == [5, 7, 9]
    assert hide([CLS, cat, SEP], [], words, rng) == [CLS, cat, SEP]


def test_a_training_batch(splits: Any) -> None:
    train = splits["train"]
    samples = [load(train, index) for index in (0, 2, 5)]
    batch = train.collater(samples)
    assert batch["input_ids"].shape == (3, 9 + 4)  # the longest caption, then the longest tags
    assert batch["input_ids"][1].tolist() == [
        *samples[1]["input_ids"], *[PAD] * 4, *ids("tree"), SEP, PAD, PAD
    ]  # fmt: skip
    assert batch["token_type_ids"][1].tolist() == [0] * 9 + [1, 1, 0, 0]
    assert batch["position_ids"].tolist() == [[*range(9), 40, 41, 42, 43]] * 3
    assert batch["od_mask"].tolist() == [[True] * 4, [True, True, False, False], [False] * 4]
    assert batch["img_mask"].sum(1).tolist() == [2, 4, 3]
    assert batch["attention_mask"].shape == (3, 17, 17)
    assert batch["attention_mask"].dtype == torch.uint8
    flat = [word for sample in samples for word in sample["masked_ids"]]
    assert batch["masked_ids"].tolist() == flat
    assert batch["masked_pos"].sum().item() == len(flat)
    assert [row.nonzero().flatten().tolist() for row in batch["masked_pos"]] == [one["masked_pos"] for one in samples]


def test_who_sees_whom() -> None:
    """Against facts in words: one pair at a time."""
    text = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    context = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]]).bool()
    mask = seq2seq_mask(text, context)
    assert mask.shape == (2, 7, 7)
    for item in range(2):
        for row in range(7):
            for column in range(7):
                there = torch.cat([text, context], 1)[item]
                allowed = column <= row if row < 3 and column < 3 else column >= 3
                expected = bool(there[row] and there[column] and allowed)
                assert bool(mask[item, row, column]) == expected, (item, row, column)


def test_evaluation(splits: Any) -> None:
    val = splits["val"]
    assert len(val) == 3
    batch = val.collater([load(val, index) for index in range(3)])
    assert batch.keys() == {"od_ids", "od_mask", "img_feats", "img_mask", "image_id", "instance_id"}
    assert batch["image_id"] == [20, 21, 22]
    assert batch["od_ids"].tolist() == [[*ids("cat red ball"), SEP], [*ids("tree"), SEP, PAD, PAD], [PAD] * 4]
    assert batch["img_feats"].shape == (3, 4, 2054)
    assert val.references()[21] == ["the cat is on the tree", "two red ball"]
    assert splits["train"].references()[10] == ["the cat is on the tree"]
    assert splits["test"].references() == {}
    assert len(splits["test"]) == 3


def test_without_tags(tmp_path: Path) -> None:
    write_captions(tmp_path)
    splits = built("oscar_coco_caption", tmp_path, add_od_labels=False)
    batch = splits["val"].collater([load(splits["val"], index) for index in range(2)])
    assert batch["od_ids"].shape == batch["od_mask"].shape == (2, 0)
    train = splits["train"].collater([load(splits["train"], 0)])
    assert train["input_ids"].shape == train["position_ids"].shape == (1, 8)


def test_tags_take_what_the_caption_leaves(tmp_path: Path) -> None:
    write_captions(tmp_path)
    val = built("oscar_coco_caption", tmp_path, max_seq_length=43)["val"]
    assert load(val, 0)["od_ids"] == [*ids("cat red"), SEP]


def test_tags_come_from_the_store_where_no_file_has_them(tmp_path: Path) -> None:
    folder = write_captions(tmp_path)
    write(folder / "val.yaml", b"feature: val.feature.tsv\n")
    val = built("oscar_coco_caption", tmp_path)["val"]
    assert load(val, 0)["od_ids"] == [*ids("cat red ball"), SEP]
    assert val.references() == {}


def test_nocaps_has_domains(tmp_path: Path) -> None:
    folder = write_captions(tmp_path, "vinvl/datasets/nocaps", ("val", "test"))
    info = {"images": [{"id": 10, "domain": "in-domain"}, {"id": 11, "domain": "out-domain"}]}
    write(folder / "nocaps_val_image_info.json", info)
    splits = built("oscar_nocaps", tmp_path)
    val = splits["val"]
    assert [val.row(index).get("domain") for index in range(3)] == ["in-domain", "out-domain", None]
    assert [val.image_id(val.row(index)) for index in range(3)] == [10, 11, 12]
    assert list(splits) == ["val", "test"]


def test_features_that_are_not_there(tmp_path: Path) -> None:
    folder = write_captions(tmp_path)
    kept = built("oscar_coco_caption", tmp_path)["train"].parts.regions.stores[0].path
    moved = kept.rename(tmp_path / "mine")
    (folder / "train.feature.tsv").unlink()
    splits = built("oscar_coco_caption", tmp_path)
    assert list(splits) == ["val", "test"]
    again = built("oscar_coco_caption", tmp_path, features={"train": str(moved)})
    assert {split: len(data) for split, data in again.items()} == {"train": 6, "val": 3, "test": 3}
    (folder / "val.feature.tsv").unlink()
    (folder / "test.feature.tsv").unlink()
    assert list(built("oscar_coco_caption", tmp_path)) == ["val", "test"]  # their stores are there
    shutil.rmtree(tmp_path / "oscar/.lavis_ext/stores")
    with pytest.raises(NotPreparedError, match="no such file of features"):
        built("oscar_coco_caption", tmp_path)


def test_files_of_another_data_set_never_stand_in(tmp_path: Path) -> None:
    """`val.yaml` of COCO lies in a folder beside that of NoCaps."""
    write_captions(tmp_path, "vinvl/datasets/coco_caption")
    (tmp_path / "vinvl/datasets/nocaps").mkdir()
    with pytest.raises(NotPreparedError, match=r"datasets/nocaps/val\.yaml: no such annotation file"):
        built("oscar_nocaps", tmp_path)


@pytest.mark.parametrize(
    ("text", "error"), [(b"label: val.label.tsv", ConfigError), (b"- a", ConfigError), (b"a: [", ConfigError)]
)
def test_a_yaml_that_names_no_features(tmp_path: Path, text: bytes, error: type[Exception]) -> None:
    write(write_captions(tmp_path) / "val.yaml", text)
    with pytest.raises(error):
        built("oscar_coco_caption", tmp_path)


def test_training_needs_captions_and_labels_need_json(tmp_path: Path) -> None:
    folder = write_captions(tmp_path)
    whole = (folder / "train.yaml").read_bytes()
    write(folder / "train.yaml", b"feature: train.feature.tsv\n")
    with pytest.raises(IntegrityError, match="names no file of captions"):
        built("oscar_coco_caption", tmp_path)
    write(folder / "train.yaml", whole)
    write(folder / "val.label.tsv", b"20\tno json\n")
    with pytest.raises(IntegrityError, match=r"val\.label\.tsv:1: has no labels as JSON"):
        built("oscar_coco_caption", tmp_path)
