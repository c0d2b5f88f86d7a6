"""Oscar+'s corpora: rows by offset, three-way sampling, hidden words, features by set and chunk."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.datasets.builders import NotPreparedError
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.oscar.datasets.pretrain import image_place, is_answer, open_corpus
from tests.support.region_data import CLS, MASK, SEP, VOCAB, built, ids, write, write_corpus

TEXTS = {"tags": {"coco": "cat red", "gqa": "dog red", "oi0": "tree red", "oi1": "tree red red"}, "answer": "yes two"}


def load(dataset: Any, index: int, seed: int = 0) -> Any:
    return dataset.load(index, torch.Generator().manual_seed(seed))


def parts(sample: Any) -> tuple[list[int], list[int]]:
    """Both texts with their hidden words put back."""
    whole = [word if word >= 0 else seen for seen, word in zip(sample["input_ids"], sample["lm_labels"], strict=True)]
    middle = whole.index(SEP)
    return whole[1:middle], whole[middle + 1 : -1]


@pytest.fixture
def train(tmp_path: Path) -> Any:
    write_corpus(tmp_path)
    return built("oscar_pretrain", tmp_path)["train"]


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("coco_train2014_000000000042", ("coco", None, "000000000042")),
        ("cc_img_003_77", ("googlecc", "003", "77")),
        ("oi_train_1_4", ("oi", "1", "4")),
        ("flickr30k_9", ("flickr30k", None, "9")),
    ],
)
def test_keys(key: str, place: tuple[str, str | None, str]) -> None:
    assert image_place(key) == place


def test_keys_that_are_none() -> None:
    for key in ("coco", "coco_", ""):
        with pytest.raises(ValueError, match="no set and id"):
            image_place(key)
    assert is_answer("gqa_qa_12")
    assert not is_answer("gqa_qaz_12")


def test_rows_by_offset(tmp_path: Path) -> None:
    path = write(tmp_path / "c.tsv", "coco_1\tcoco_1\tun été\r\ngqa_2\tgqa_qa_2\ta\tb\ncoco_3\tcoco_3\tlast".encode())
    rows = open_corpus(path, tmp_path / "marks")
    assert [row["caption"] for row in rows] == ["un été", "a", "last"]
    assert rows[1]["label_key"] == "gqa_qa_2"
    assert rows.answers.tolist() == [False, True, False]
    assert [row["instance_id"] for row in rows[1:]] == ["1", "2"]
    again = pickle.loads(pickle.dumps(rows))
    assert list(again) == list(rows)
    write(path, b"coco_9\tcoco_9\tnew\n")
    assert [row["caption"] for row in open_corpus(path, tmp_path / "marks")] == ["new"]
    write(path, b"coco_9\tcoco_9\n")
    with pytest.raises(IntegrityError, match=r"c\.tsv:1: has no three columns"):
        open_corpus(path, tmp_path / "marks")
    write(path, b"")
    with pytest.raises(IntegrityError, match="holds no rows"):
        open_corpus(path, tmp_path / "marks")


def test_matching_rows(train: Any) -> None:
    assert len(train) == 12
    assert train.num_contrast_classes == 3
    expected = {
        1: (ids("the cat is on it"), ids(TEXTS["tags"]["coco"])),
        5: (ids("is it red red"), ids(TEXTS["answer"])),
        8: (ids("two dog"), ids(TEXTS["tags"]["oi0"])),
        9: (ids("two dog dog"), ids(TEXTS["tags"]["oi1"])),
    }
    for index, texts in expected.items():
        sample = next(one for seed in range(50) if (one := load(train, index, seed))["labels"] == 0)
        assert parts(sample) == texts
        assert sample["input_ids"][0] == CLS


def test_the_shares_of_the_three_classes(train: Any) -> None:
    counts: Counter[int] = Counter()
    for seed in range(2000):
        index = seed % 4
        sample = load(train, index, seed)
        counts[sample["labels"]] += 1
        own = (ids(train.row(index)["caption"]), ids("cat red"))
        text, tags = parts(sample)
        if sample["labels"] == 0:
            assert (text, tags) == own
        elif sample["labels"] == 1:  # tags of any row that has tags: never an answer
            assert text == own[0]
            assert tags in [ids(value) for value in TEXTS["tags"].values()]
        else:
            assert tags == own[1]
            assert text != own[0]
    assert counts[0] / 2000 == pytest.approx(0.5, abs=0.04)
    assert counts[1] / 2000 == pytest.approx(0.25, abs=0.035)
    assert counts[2] / 2000 == pytest.approx(0.25, abs=0.035)


@pytest.mark.parametrize(("mode", "answers"), [(0, 4 / 11), (1, 0.0), (2, 1.0)])
def test_who_gives_wrong_tags(tmp_path: Path, mode: int, answers: float) -> None:
    write_corpus(tmp_path)
    train = built("oscar_pretrain", tmp_path, textb_sample_mode=mode, texta_false_prob=0.0)["train"]
    assert train.num_contrast_classes == 2
    seconds = [parts(sample)[1] for seed in range(600) if (sample := load(train, 0, seed))["labels"] == 1]
    assert abs(len(seconds) - 300) < 60
    share = sum(text == ids(TEXTS["answer"]) for text in seconds) / len(seconds)
    assert share == pytest.approx(answers, abs=0.09)


def test_hidden_words(train: Any) -> None:
    hidden = total = masks = 0
    for seed in range(1500):
        sample = load(train, seed % 12, seed)
        asked = [label for label in sample["lm_labels"] if label != -100]
        assert CLS not in asked
        assert SEP not in asked
        hidden += len(asked)
        total += sum(len(part) for part in parts(sample))
        masks += sum(s == MASK for s, label in zip(sample["input_ids"], sample["lm_labels"], strict=True) if label >= 0)
    assert hidden / total == pytest.approx(0.15, abs=0.015)
    assert masks / hidden == pytest.approx(0.8 + 0.1 / len(VOCAB), abs=0.04)


def test_a_batch(train: Any) -> None:
    samples = [load(train, index) for index in (0, 5, 9)]
    batch = train.collater(samples)
    longest = max(len(sample["input_ids"]) for sample in samples)
    assert batch["input_ids"].shape == batch["lm_labels"].shape == (3, longest)
    assert batch["labels"].tolist() == [sample["labels"] for sample in samples]
    assert batch["lm_labels"][0, len(samples[0]["input_ids"]) :].eq(-100).all()
    assert batch["img_feats"].shape == (3, 2, 2054)
    assert batch["image_id"] == ["0", "1", "1"]
    assert train[0]["img_feats"].shape == (1, 2054)
    again = pickle.loads(pickle.dumps(train))
    assert load(again, 5, 3) == load(train, 5, 3)


def test_features_are_of_the_set_and_chunk(train: Any) -> None:
    """Ids repeat from set to set."""
    stores = [train.parts.regions.stores[load(train, index)["regions"].store].path.name for index in (1, 5, 8, 9)]
    told = [name.removeprefix("image_features-").removesuffix("-features") for name in stores]
    assert told == ["coco_x-model", "gqa_x-model", "oi_x-model-0", "oi_x-model-1"]


def test_faults(tmp_path: Path) -> None:
    base = write_corpus(tmp_path)
    lines = (base / "coco_flickr30k_gqa.tsv").read_text().splitlines()
    lines += ["coco_train_99\tcoco_train_99\tthe cat", "sbu_1_3\tsbu_1_3\tthe cat", "coco\tcoco\tthe cat"]
    lines += ["gqa_img_1\tgqa_qa_77\tis it red", "coco_train_1\tcoco_train_1\t "]
    write(base / "coco_flickr30k_gqa.tsv", "\n".join(lines).encode())
    train = built("oscar_pretrain", tmp_path, texta_false_prob=0.0)["train"]
    for index, why in (
        (12, "no image '99'"),
        (13, "no features of this set of images: sbu/1"),
        (14, "image_key is none"),
        (15, r"answer is not in QA_fileB\.tsv of gqa: 77"),
        (16, "caption is missing"),
    ):
        with pytest.raises(SampleError, match=why):
            for seed in range(20):
                load(train, index, seed)


def test_stores_of_the_users(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    first = built("oscar_pretrain", tmp_path)["train"]
    coco = str(first.parts.regions.stores[0].path)
    second = built("oscar_pretrain", tmp_path, features={"coco": coco})["train"]
    assert load(second, 1, 5) == load(first, 1, 5)


def test_a_corpus_that_lacks_something(tmp_path: Path) -> None:
    base = write_corpus(tmp_path)
    home = base / "coco_flickr30k_gqa_x152c4big2exp168.yaml"
    write(home, {"corpus": "coco", "corpus_file": "coco_flickr30k_gqa.tsv", "image_feature_path": {"gqa": "x"}})
    with pytest.raises(ConfigError, match="names no features of 'coco'"):
        built("oscar_pretrain", tmp_path)
    write(home, {"corpus": "coco", "corpus_file": "coco_flickr30k_gqa.tsv", "image_feature_path": {"coco": "x"}})
    with pytest.raises(NotPreparedError, match="no features of 'coco'"):
        built("oscar_pretrain", tmp_path)
    write(home, {"corpus": "coco"})
    with pytest.raises(ConfigError, match="has no corpus_file, image_feature_path"):
        built("oscar_pretrain", tmp_path)
    write_corpus(tmp_path)
    for args in ({"texta_false_prob": 2}, {"textb_sample_mode": 7}, {"mask_prob": "x"}):
        with pytest.raises(ConfigError, match=next(iter(args))):
            built("oscar_pretrain", tmp_path, **args)
