"""The shape `vqa`: weights, LAVIS' batch, official and LAVIS files in any order, and what is refused."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common.config.cards import load_cards, load_dataset_config
from lavis_ext.common.config.schema import AnnotationConfig, BuildInfo, DatasetConfig, ImagesConfig
from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.datasets.builders import BuildContext, NotPreparedError, build_datasets, load_dataset
from lavis_ext.datasets.builders.vqa import VqaDataset, VqaEvalDataset
from lavis_ext.datasets.readers import SampleError
from tests.support.families import FORMS, aokvqa_official, gqa, lavis_vqa, picture, vg, vqav2, vqav2_lavis
from tests.support.pictures import write_json


def built(name: str, root: Path, *splits: str, type: str = "default") -> Any:
    config = load_cards().dataset(name, type)
    return build_datasets(config, BuildContext(root, splits or None))


def own(root: Path, rows: Any, **args: Any) -> VqaDataset:
    """A training split of one's own rows and one picture `a.jpg`."""
    picture(root, "images/a.jpg")
    write_json(root / "rows.json", rows)
    info = BuildInfo(
        annotations={"train": AnnotationConfig(storage=["rows.json"])}, images=ImagesConfig(storage="images")
    )
    config = DatasetConfig(name="mine", builder="vqa", build_info=info, args=args)
    dataset = build_datasets(config, BuildContext(root))["train"]
    assert isinstance(dataset, VqaDataset)
    return dataset


def test_weights_are_shares_of_the_annotators(tmp_path: Path) -> None:
    vqav2(tmp_path)
    sample = built("coco_vqa", tmp_path, "train")["train"][0]
    assert sample["answers"] == ["net", "a net", "netting"]
    assert sample["weights"] == pytest.approx([0.7, 0.2, 0.1])
    assert sample["text_input"] == "what is in picture 1, please?"
    assert sample["question_id"] == 10


def test_batch_has_lavis_keys(tmp_path: Path) -> None:
    vqav2(tmp_path)
    train = built("coco_vqa", tmp_path, "train")["train"]
    batch = train.collater([train[0], train[4]])
    assert set(batch) == {"image", "text_input", "answer", "weight", "n_answers", "question_id", "instance_id"}
    assert batch["answer"] == ["net", "a net", "netting"] * 2
    assert batch["weight"].dtype == torch.float32
    torch.testing.assert_close(batch["weight"], torch.tensor([0.7, 0.2, 0.1] * 2))
    assert batch["n_answers"].tolist() == [3, 3]
    assert batch["n_answers"].dtype == batch["question_id"].dtype == torch.int64
    assert batch["question_id"].tolist() == [10, 120]


def test_official_train_joins_both_splits_by_question(tmp_path: Path) -> None:
    vqav2(tmp_path)
    rows = built("coco_vqa", tmp_path, "train")["train"].rows
    expected = [
        {k: v for k, v in row.items() if k != "dataset"} for s in ("train2014", "val2014") for row in lavis_vqa(s)
    ]
    assert [{k: v for k, v in row.items() if k != "instance_id"} for row in rows] == expected
    only = built("coco_vqa", tmp_path, "train", type="train_only")["train"]
    assert len(only) == 3


def test_eval_split_knows_its_official_files_and_answers(tmp_path: Path) -> None:
    vqav2(tmp_path / "official")
    vqav2_lavis(tmp_path / "lavis")
    for form, answer_list in (("official", None), ("lavis", ["net", "a net", "netting"])):
        val = built("coco_vqa", tmp_path / form, "val")["val"]
        assert isinstance(val, VqaEvalDataset)
        folder = tmp_path / form / "coco/annotations"
        assert val.coco_fmt_qust_file == str(folder / "v2_OpenEnded_mscoco_val2014_questions.json")
        assert val.coco_fmt_anno_file == str(folder / "v2_mscoco_val2014_annotations.json")
        assert val.answer_list == answer_list
        assert val.references()[110].count("net") == 7
    test = built("coco_vqa", tmp_path / "official", "test")["test"]
    assert (test.coco_fmt_anno_file, test.references()) == (None, {})
    assert test.image_name(test.row(0)) == "test2015/COCO_test2015_000000000021.jpg"


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_lavis_positional_list_is_read_in_any_order(order: list[int], tmp_path: Path) -> None:
    """Upstream's split `val` is a list of four files whose order matters there, and was mistaken."""
    vqav2_lavis(tmp_path)
    questions, answers = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
    names = ["vqa_val_eval.json", "answer_list.json", questions, answers]
    chosen = [names[i] for i in order]
    listed = {
        "url": [f"https://storage.googleapis.com/x/vqav2/{name}" for name in chosen],
        "storage": [f"coco/annotations/{name}" for name in chosen],
    }
    path = tmp_path / "eval_vqa.yaml"
    path.write_text(
        json.dumps({"datasets": {"coco_vqa": {"type": "eval", "build_info": {"annotations": {"val": listed}}}}})
    )
    config = load_dataset_config(path)
    val = build_datasets(config, BuildContext(tmp_path))["val"]
    assert isinstance(val, VqaEvalDataset)
    assert (len(val), val.answer_list) == (3, ["net", "a net", "netting"])
    assert Path(str(val.coco_fmt_qust_file)).name == questions
    assert Path(str(val.coco_fmt_anno_file)).name == answers


def test_questions_and_answers_of_different_splits_are_refused(tmp_path: Path) -> None:
    vqav2(tmp_path)
    folder = tmp_path / "coco/annotations"
    (folder / "v2_mscoco_train2014_annotations.json").replace(folder / "v2_mscoco_val2014_annotations.json")
    with pytest.raises(IntegrityError, match=r"3 of 3 questions have no answers in .*val2014.*, first 110"):
        built("coco_vqa", tmp_path, "val")


def test_a_single_answer_has_the_declared_weight(tmp_path: Path) -> None:
    vg(tmp_path)
    sample = built("vg_vqa", tmp_path)["train"][0]
    assert (sample["answers"], sample["weights"]) == (["yes."], [0.2])


def test_official_visual_genome_questions(tmp_path: Path) -> None:
    vg(tmp_path)
    (tmp_path / "vg/annotations/vg_qa.json").unlink()
    qas = [{"qa_id": 7 + i, "image_id": 2, "question": f"Q{i}?", "answer": "A."} for i in range(2)]
    write_json(tmp_path / "vg/annotations/question_answers.json", [{"id": 2, "qas": qas}, {"id": 3, "qas": []}])
    train = built("vg_vqa", tmp_path)["train"]
    assert [(row["question_id"], row["image"]) for row in train.rows] == [(7, "2.jpg"), (8, "2.jpg")]
    assert train[1]["text_input"] == "q1?"


def test_test_split_without_answers_survives_collation(tmp_path: Path) -> None:
    gqa(tmp_path)
    splits = built("gqa", tmp_path)
    test = splits["test"]
    batch = test.collater([test[0], test[1]])
    assert batch["answer"] == [None, None]
    assert batch["question_id"] == ["01", "02"]
    assert splits["val"][0]["answer"] == "yes"
    assert splits["train"][0]["weights"] == [1.0]


def test_gqa_keeps_only_what_samples_need(tmp_path: Path) -> None:
    gqa(tmp_path)
    assert set(built("gqa", tmp_path)["train"].row(0)) == {"question_id", "image", "question", "answer", "instance_id"}


def test_knowledge_fields_of_aokvqa(tmp_path: Path) -> None:
    aokvqa_official(tmp_path)
    splits = built("aok_vqa", tmp_path)
    batch = splits["val"].collater([splits["val"][0]])
    assert batch["choices"] == [["net", "dog", "cat", "sun"]]
    assert batch["correct_choice_idx"] == [1]
    blind = splits["test"][0]
    assert (blind["correct_choice_idx"], blind["direct_answers"]) == (None, None)
    assert splits["val"].image_name(splits["val"].row(0)).startswith("val2014/")
    shown = splits["val"].displ_item(0)
    assert list(shown)[2:6] == ["question_id", "direct_answers", "choices", "correct_choice"]
    assert (shown["choices"], shown["correct_choice"]) == ("net; dog; cat; sun", "dog")
    assert shown["direct_answers"] == "; ".join(splits["val"].row(0)["direct_answers"])
    assert splits["test"].displ_item(0)["correct_choice"] is None


def test_pickles(tmp_path: Path) -> None:
    vqav2(tmp_path)
    train = built("coco_vqa", tmp_path, "train")["train"]
    other = pickle.loads(pickle.dumps(train))
    assert len(other) == 6
    assert torch.equal(other[5]["image"].mean() * 0 + 1, torch.tensor(1.0))
    assert other.row(5) == train.row(5)


def test_a_question_without_answers_or_text_is_one_bad_sample(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "question": "q", "answer": []},
        {"image": "a.jpg", "question": "q", "answer": [None]},
        {"image": "a.jpg", "question": "", "answer": "x"},
        {"image": "b.jpg", "question": "q", "answer": "x"},
        {"image": "a.jpg", "question": "q", "answer": "x"},
    ]
    dataset = own(tmp_path, rows)
    for index, why in enumerate(["answer is missing", "answer is missing", "question is missing", "image is missing"]):
        with pytest.raises(SampleError, match=why):
            dataset[index]
    assert dataset[4]["answers"] == ["x"]
    assert "question_id" not in dataset[4]


def test_displayed_item(tmp_path: Path) -> None:
    dataset = own(
        tmp_path, [{"image": "a.jpg", "question": "Q?", "text": ["x", "y"], "question_id": 3}], answer_key="text"
    )
    shown = dataset.displ_item(0)
    assert (shown["file"], shown["question"], shown["question_id"], shown["answers"]) == ("a.jpg", "Q?", 3, ["x", "y"])


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"args\.eval_keys: 'choice' is not a choice; did you mean 'choices'"):
        own(tmp_path, [], eval_keys=["choice"])
    with pytest.raises(ConfigError, match="no rows and no questions among the annotations"):
        own(tmp_path, ["only", "words"])
    with pytest.raises(NotPreparedError, match="lavis-ext prepare coco_vqa"):
        built("coco_vqa", tmp_path)


def test_manual_data_sets_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotPreparedError, match=r"put yours at conceptual_caption/annotations/cc3m.json"):
        built("conceptual_caption_3m", tmp_path)


def test_other_form_counts_only_when_it_is_whole(tmp_path: Path) -> None:
    FORMS["aok_vqa"][1](tmp_path)
    (tmp_path / "aokvqa/official/aokvqa_v1p0_val.json").unlink()
    with pytest.raises(NotPreparedError, match=r"annotations/aokvqa_v1p0_val\.json"):
        built("aok_vqa", tmp_path, "val")


def test_lavis_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path))
    vqav2(tmp_path)
    assert load_dataset("coco_vqa")["val"][0]["question_id"] == 110


def test_limits_apply_to_joined_rows(tmp_path: Path) -> None:
    vqav2(tmp_path)
    config = replace(load_cards().dataset("coco_vqa"), max_samples={"train": 4})
    assert len(build_datasets(config, BuildContext(tmp_path, ["train"]))["train"]) == 4
