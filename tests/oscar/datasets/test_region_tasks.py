"""VQA, GQA and NLVR2 from the files of Oscar's zips: samples, batches, answers in pickled order, faults."""

import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.datasets.builders import NotPreparedError
from lavis_ext.datasets.mixture import Mixture
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.features import open_store
from tests.support.features import b64
from tests.support.region_data import CLS, SEP, VOCAB_PATH, built, ids, write, write_gqa, write_nlvr2, write_vqa

VQA = "oscar/datasets/vqa"


def load(dataset: Any, index: int = 0) -> Any:
    return dataset.load(index, torch.Generator().manual_seed(0))


def whole(dataset: Any) -> Any:
    return dataset.collater([load(dataset, index) for index in range(len(dataset))])


def test_vqa_samples(tmp_path: Path) -> None:
    arrays = write_vqa(tmp_path)
    train = built("oscar_vqa", tmp_path)["train"]
    assert len(train) == 3
    sample: Any = train[0]
    assert sample["input_ids"] == [CLS, *ids("what is red ?"), SEP, *ids("cat dog red ball"), SEP]
    assert sample["token_type_ids"] == [0] * 6 + [1] * 5
    assert np.array_equal(sample["img_feats"].numpy(), arrays[11])
    assert sample["targets"] == ([2, 0], [1.0, 0.3])
    assert (sample["image_id"], sample["instance_id"], sample["question_id"]) == (11, "0", 0)
    loaded = load(train)
    assert {**sample, "regions": 0}.keys() == {**loaded, "img_feats": 0}.keys()
    assert [load(train, index)["instance_id"] for index in range(3)] == ["0", "2", "3"]


def test_vqa_batch(tmp_path: Path) -> None:
    arrays = write_vqa(tmp_path)
    train = built("oscar_vqa", tmp_path)["train"]
    batch = whole(train)
    assert batch["targets"].tolist() == pytest.approx(np.array([[0.3, 0, 1, 0], [0, 0.6, 0, 0], [0, 0.6, 0, 0.9]]))
    longest = max(len(load(train, i)["input_ids"]) for i in range(3))
    assert batch["input_ids"].shape == (3, longest)
    assert batch["img_feats"].shape == (3, 8, 2054)
    assert np.array_equal(batch["img_feats"][2].numpy(), arrays[14])
    assert batch["attention_mask"].sum().item() == sum(len(load(train, i)["input_ids"]) for i in range(3)) + 3 + 1 + 8
    assert batch["question_id"] == [0, 0, 0]


def test_answers_keep_the_pickled_order(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    labels = built("oscar_vqa", tmp_path)["train"].labels
    assert labels.ids == [7, 0, 3, 12]
    assert labels.answers == ["yes", "no", "red ball", "two"]
    kept = next((tmp_path / "oscar/.lavis_ext/labels").iterdir())
    assert json.loads(kept.read_text()) == [
        {"id": 7, "answer": "yes"},
        {"id": 0, "answer": "no"},
        {"id": 3, "answer": "red ball"},
        {"id": 12, "answer": "two"},
    ]
    again = built("oscar_vqa", tmp_path, label_file=str(kept), label2ans_file="nowhere.pkl")["val"].labels
    assert again == labels
    with pytest.raises(ConfigError, match="label_file: names no file"):
        built("oscar_vqa", tmp_path, label_file=None)
    assert again.digest() == labels.digest()
    write(tmp_path / VQA / "cache/trainval_ans2label.pkl", pickle.dumps({"no": 0, "yes": 7, "red ball": 3, "two": 12}))
    assert built("oscar_vqa", tmp_path)["val"].labels.digest() != labels.digest()


def test_evaluation_keeps_questions_without_an_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_vqa(tmp_path)
    with caplog.at_level(logging.INFO):
        splits = built("oscar_vqa", tmp_path)
    assert "oscar_vqa/train: 1 of 4 records have no answer and are left out" in caplog.text
    batch = whole(splits["val"])
    assert batch["targets"][1].tolist() == [0, 0, 0, 0]
    test = whole(splits["test"])
    assert "targets" not in test
    assert test["question_id"] == [310, 311, 312]
    assert splits["test"].labels.answers == splits["train"].labels.answers


def test_tags_of_the_other_detector(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    faster = built("oscar_vqa", tmp_path, data_label_type="faster")
    assert list(faster) == ["train"]  # the other splits have no such file here
    assert load(faster["train"])["input_ids"][-2:] == [*ids("person"), SEP]
    bare = built("oscar_vqa", tmp_path, add_od_labels=False)["train"]
    assert load(bare)["input_ids"] == [CLS, *ids("what is red ?"), SEP]
    with pytest.raises(ConfigError, match=r"args\.data_label_type"):
        built("oscar_vqa", tmp_path, data_label_type="fast")


def test_gqa(tmp_path: Path) -> None:
    write_gqa(tmp_path)
    splits = built("oscar_gqa", tmp_path)
    assert list(splits) == ["train", "val", "testdev", "test"]
    assert whole(splits["train"])["labels"].tolist() == [0, 2, 1]
    assert splits["val"].labels.answers == ["yes", "no", "red ball", "two"]
    test = whole(splits["test"])
    assert test["question_id"] == ["000", "001", "002"]
    assert "labels" not in test
    every = built("oscar_gqa", tmp_path, train_data_type="all")
    assert [len(every[split]) for split in ("train", "val")] == [4, 3]


def test_gqa_labels_are_found_in_either_folder(tmp_path: Path) -> None:
    write_gqa(tmp_path)
    base = tmp_path / "oscar/datasets/GQA"
    for path in (base / "questions1.2").iterdir():
        path.rename(base / "0.4true" / path.name)
    shutil.rmtree(base / "questions1.2")
    assert built("oscar_gqa", tmp_path)["val"].labels.ids == [7, 0, 3, 12]


def test_a_question_without_its_answer_in_evaluation_has_no_class(tmp_path: Path) -> None:
    write_gqa(tmp_path)
    path = tmp_path / "oscar/datasets/GQA/0.4true/gqa_bal_qla_val.json"
    rows = json.loads(path.read_text())
    rows[1]["an"] = []
    write(path, rows)
    assert whole(built("oscar_gqa", tmp_path)["val"])["labels"].tolist() == [0, -100, 1]


def test_nlvr2(tmp_path: Path) -> None:
    write_nlvr2(tmp_path)
    splits = built("oscar_nlvr2", tmp_path)
    sample: Any = splits["train"][1]
    sentence = ids("the left cat is on the right tree .")
    assert sample["input_ids"] == [
        [CLS, *sentence, SEP, *ids("cat [UNK] dog [UNK] tree"), SEP],  # `;` stays, as upstream's reader of NLVR2 has it
        [CLS, *sentence, SEP, *ids("ball"), SEP],
    ]
    assert [one.shape for one in sample["img_feats"]] == [(2, 2054), (3, 2054)]
    batch = whole(splits["train"])
    assert batch["labels"].tolist() == [1, 0, 1]
    assert batch["input_ids"].shape == batch["token_type_ids"].shape == (3, 2, 17)
    assert batch["attention_mask"].shape == (3, 2, 17 + 4)
    assert batch["img_feats"].shape == (3, 2, 4, 2054)
    assert batch["attention_mask"][0, 1].tolist() == [1] * 13 + [0] * 4 + [1] * 2 + [0] * 2
    assert torch.equal(batch["img_feats"][1, 0, :2], sample["img_feats"][0])
    assert torch.equal(batch["img_feats"][1, 1, :3], sample["img_feats"][1])
    assert splits["train"].labels is None
    assert len(built("oscar_nlvr2", tmp_path, eval_data_type="bal")["val"]) == 2
    again = splits["train"].collater([splits["train"][index] for index in range(3)])
    assert torch.equal(again["img_feats"], batch["img_feats"])


def test_each_side_of_a_pair_is_cut_by_itself(tmp_path: Path) -> None:
    """Upstream cut the sentence beside the left image's tags, and went on with what was left of it."""
    write_nlvr2(tmp_path)
    path = tmp_path / "oscar/datasets/nlvr2/ft_corpus/nlvr2_train.json"
    rows = json.loads(path.read_text())
    rows[0]["o"] = {"left": " ".join(["dog"] * 40), "right": "ball"}
    write(path, rows)
    left, right = load(built("oscar_nlvr2", tmp_path, max_seq_length=16)["train"])["input_ids"]
    sentence = ids("the left cat is on the right tree .")
    assert left == [CLS, *sentence[:7], SEP, *ids("dog " * 6), SEP]
    assert right == [CLS, *sentence, SEP, *ids("ball"), SEP]


def test_identifiers(tmp_path: Path) -> None:
    write_nlvr2(tmp_path)
    path = tmp_path / "oscar/datasets/nlvr2/ft_corpus/nlvr2_test1.json"
    rows = json.loads(path.read_text())
    for row, name in zip(rows, ("test1-0-1-0", "", None), strict=True):
        row["identifier"] = name
        del row["label"]
    write(path, rows)
    batch = whole(built("oscar_nlvr2", tmp_path)["test"])
    assert batch["question_id"] == ["test1-0-1-0", "test_1", "test_2"]
    assert "labels" not in batch


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"img_id": 99}, "no features: no image '99' among 6"),
    ({"q": " "}, "q is missing or empty"),
    ({"q": None}, "q is missing or empty"),
    ({"an": [5]}, "label id is not in the vocabulary: 5"),
    ({"s": [1]}, "scores do not fit the answers: 1 and 2"),
    ({"img_id": None}, "image id is missing"),
]


@pytest.mark.parametrize(("change", "why"), FAULTS)
def test_a_question_that_cannot_be_used_is_a_counted_fault(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    write_vqa(tmp_path)
    path = tmp_path / VQA / "2k/train2014_qla_mrcnn.json"
    rows = json.loads(path.read_text())
    write(path, [{**rows[0], **change}, *rows[1:]])
    train = built("oscar_vqa", tmp_path)["train"]
    with pytest.raises(SampleError, match=why) as caught:
        load(train)
    assert caught.value.sample_id == "oscar_vqa/train#0"
    mixture = Mixture({"oscar_vqa": train}, batch_size=3, num_workers=0, shuffle=False)
    mixture.faults.tolerances["oscar_vqa"] = 0.5
    [batch] = list(mixture)
    assert len(batch["image_id"]) == 2
    assert mixture.faults.summary()["oscar_vqa/train"]["bad"] == 1


def test_the_store_is_made_once_and_nothing_published_is_touched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_vqa(tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / VQA).rglob("*") if p.is_file()}
    with caplog.at_level(logging.INFO):
        built("oscar_vqa", tmp_path)
    assert caplog.text.count("once; later runs read it from there") == 3  # test and test_dev share one
    caplog.clear()
    with caplog.at_level(logging.INFO):
        splits = built("oscar_vqa", tmp_path)
    assert "importing" not in caplog.text
    assert all(path.read_bytes() == data for path, data in before.items())
    [store] = splits["train"].parts.regions.stores
    assert store.path == tmp_path / "oscar/.lavis_ext/stores/datasets-vqa-2k-train_img_frcnn_feats"
    assert len(open_store(store.path)) == 6


def test_a_store_of_the_users(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    first = built("oscar_vqa", tmp_path)["train"]
    mine = tmp_path / "mine"
    shutil.copytree(first.parts.regions.stores[0].path, mine)
    shutil.rmtree(tmp_path / "oscar/.lavis_ext/stores")
    for path in (tmp_path / VQA / "2k").glob("*.pt"):
        path.unlink()
    splits = built("oscar_vqa", tmp_path, features={"train": str(mine)})
    assert list(splits) == ["train"]
    assert torch.equal(whole(splits["train"])["img_feats"], whole(first)["img_feats"])


def test_a_published_file_may_go_once_its_store_is_there(tmp_path: Path) -> None:
    write_gqa(tmp_path)
    first = whole(built("oscar_gqa", tmp_path)["val"])
    (tmp_path / "oscar/datasets/GQA/0.4true/gqa_img_frcnn_feats.pt").unlink()
    assert torch.equal(whole(built("oscar_gqa", tmp_path)["val"])["img_feats"], first["img_feats"])


def test_rows_stand_for_a_dictionary_of_tensors(tmp_path: Path) -> None:
    """`--img_feat_format tsv`."""
    write_gqa(tmp_path)
    first = whole(built("oscar_gqa", tmp_path)["val"])
    path = tmp_path / "oscar/datasets/GQA/0.4true/gqa_img_frcnn_feats.pt"
    arrays = torch.load(path, weights_only=True)
    path.unlink()
    shutil.rmtree(tmp_path / "oscar/.lavis_ext")
    rows = [f"{key}\t{len(array)}\t{b64(array.numpy())}\n" for key, array in arrays.items()]
    write(path.with_suffix(".tsv"), "".join(rows).encode())
    assert torch.equal(whole(built("oscar_gqa", tmp_path)["val"])["img_feats"], first["img_feats"])


def test_a_split_whose_answers_are_all_empty_has_none(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    path = tmp_path / VQA / "2k/test2015_qla_mrcnn.json"
    write(path, [{**row, "an": [], "s": []} for row in json.loads(path.read_text())])
    assert "targets" not in whole(built("oscar_vqa", tmp_path)["test"])


@pytest.mark.parametrize("name", ["oscar_vqa", "oscar_gqa", "oscar_nlvr2"])
def test_vinvl_types_read_the_same_records(tmp_path: Path, name: str) -> None:
    writers = {"oscar_vqa": write_vqa, "oscar_gqa": write_gqa, "oscar_nlvr2": write_nlvr2}
    writers[name](tmp_path)
    first = built(name, tmp_path)
    base = {"oscar_vqa": "vqa/2k", "oscar_gqa": "GQA/0.4true", "oscar_nlvr2": "nlvr2/ft_corpus"}[name]
    (tmp_path / "oscar/datasets" / base).rename(tmp_path / "moved")
    target = tmp_path / "vinvl/datasets" / name.removeprefix("oscar_")
    target.parent.mkdir(parents=True)
    (tmp_path / "moved").rename(target)
    for folder in ("vqa/cache", "GQA/questions1.2"):
        for path in (tmp_path / "oscar/datasets" / folder).glob("*.pkl"):
            write(target / path.name, path.read_bytes())
    second = built(name, tmp_path, "vinvl")
    assert list(first) == list(second)
    for split in first:
        one, other = (whole(splits[split]) for splits in (first, second))
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["img_feats"], other["img_feats"])


def test_a_source_that_has_changed_is_not_passed_over(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    built("oscar_vqa", tmp_path)
    path = tmp_path / VQA / "2k/val_img_frcnn_feats.pt"
    torch.save({21: torch.ones(1, 2054)}, path)
    with pytest.raises(IntegrityError, match="has changed since it was imported"):
        built("oscar_vqa", tmp_path)


def test_what_is_missing_is_named_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(NotPreparedError, match="run `lavis-ext prepare oscar_vqa`"):
        built("oscar_vqa", tmp_path)
    write_vqa(tmp_path)
    (tmp_path / VOCAB_PATH).unlink()
    with pytest.raises(NotPreparedError, match="lavis-ext prepare oscar/base-vg-labels"):
        built("oscar_vqa", tmp_path)


def test_a_data_set_can_be_pickled(tmp_path: Path) -> None:
    write_nlvr2(tmp_path)
    train = built("oscar_nlvr2", tmp_path)["train"]
    again = pickle.loads(pickle.dumps(train))
    first, second = whole(train), whole(again)
    assert torch.equal(first.pop("img_feats"), second.pop("img_feats"))
    assert str(first) == str(second)


def test_a_folder_of_the_users_stands_for_the_declared_one(tmp_path: Path) -> None:
    from dataclasses import replace

    from lavis_ext.common.config.cards import load_cards
    from lavis_ext.datasets.builders import BuildContext, build_datasets

    write_nlvr2(tmp_path)
    (tmp_path / "oscar").rename(tmp_path / "elsewhere")
    config = load_cards().dataset("oscar_nlvr2")
    info = replace(config.build_info, storage=[str(tmp_path / "elsewhere")])
    vocab = str(tmp_path / VOCAB_PATH).replace("/oscar/", "/elsewhere/")
    config = replace(config, build_info=info, args={**config.args, "vocab": vocab})
    splits = build_datasets(config, BuildContext(tmp_path))
    assert len(splits["train"]) == 3
    assert (tmp_path / "elsewhere/.lavis_ext/stores").is_dir()
