"""Oscar's archives of the demo world: laid out and written as published, and true by geometry recomputed."""

from __future__ import annotations

import json
import pickle
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lavis_ext.features.formats.restricted import load_plain
from lavis_ext.oscar.convert import from_oscar
from tests.support.geometry import answer, holds
from tests.support.oscar_world import SCENES, WORLD, Published
from tests.world.oscar.checkpoints import vocab_txt
from tests.world.questions import questions
from tests.world.regions import BUTD, MASK, detect, features

Rows = list[dict[str, Any]]
VQA = ["train2014", "val2014", "train+val2014", "train2014_vg", "vg", "test2015", "test-dev2015"]
TINY = Path(__file__).parents[3] / "configs/models/oscar/tiny.yaml"


def rows_of(published: Published, name: str) -> Rows:
    rows: Rows = published.load("oscar/vqa", f"vqa/2k/{name}_qla_mrcnn.json")
    return rows


LAYOUT = {
    "vqa": [
        *(f"2k/{name}_qla_mrcnn.json" for name in VQA),
        *(f"2k/{name}_img_frcnn_feats.pt" for name in ("train", "val", "train+val", "test2015")),
        *("cache/trainval_ans2label.pkl", "cache/trainval_label2ans.pkl"),
    ],
    "GQA": [
        *(f"0.4true/gqa_{kind}_qla_{split}.json" for kind in ("bal", "all") for split in ("train", "val", "testdev")),
        *("0.4true/gqa_all_qla_submission.json", "0.4true/gqa_img_frcnn_feats.pt"),
        *(f"questions1.2/trainval_testdev_all_{name}.pkl" for name in ("ans2label", "label2ans")),
    ],
    "nlvr2": [
        f"ft_corpus/nlvr2_{name}"
        for name in (
            *("train.json", "dev.json", "balanced_dev.json", "unbalanced_dev.json", "test1.json"),
            *("balanced_test1.json", "unbalanced_test1.json", "dev_test1.json", "img_frcnn_feats.pt"),
        )
    ],
    "coco_ir": [
        *(f"{split}_{kind}.pt" for split in ("train", "minival", "test") for kind in ("captions", "vg_labels")),
        *(f"{split}_img_frcnn_feats.pt" for split in ("train", "minival", "test")),
        *("minival_caption_indexs_top20.pt", "test_img_keys_1k.tsv", "test_img_keys.tsv"),
    ],
    "coco_caption": [
        *(f"{split}.{end}" for split in ("train", "val", "test") for end in ("yaml", "feature.tsv", "feature.lineidx")),
        *(f"{split}.{end}" for split in ("train", "val", "test") for end in ("label.tsv", "label.lineidx")),
        *(f"{split}.{end}" for split in ("train", "val", "test") for end in ("hw.tsv", "hw.lineidx")),
        *(
            f"{split}_{end}"
            for split in ("train", "val", "test")
            for end in ("caption.json", "caption_coco_format.json")
        ),
        "coco-train-words.p",
    ],
}


@pytest.mark.parametrize("task", LAYOUT)
def test_archives_are_laid_out_as_published(published: Published, task: str) -> None:
    assert published.names(f"oscar/{task}") == sorted(f"{task}/{name}" for name in LAYOUT[task])


def test_answers_of_vqa_are_classes_in_an_order_of_their_own(published: Published) -> None:
    classes = published.load("oscar/vqa", "vqa/cache/trainval_ans2label.pkl")
    names = published.load("oscar/vqa", "vqa/cache/trainval_label2ans.pkl")
    assert isinstance(names, list) and {names[label]: label for label in classes.values()} == classes
    order = list(classes.values())
    assert sorted(order) == list(range(len(names))) and order not in (sorted(order), sorted(order, reverse=True))
    assert order != [classes[name] for name in sorted(classes)]


def test_soft_scores_of_vqa_name_the_truth(published: Published) -> None:
    names = published.load("oscar/vqa", "vqa/cache/trainval_label2ans.pkl")
    empty = 0
    for row in [*rows_of(published, "train+val2014"), *rows_of(published, "vg")]:
        truth = answer(SCENES[row["img_id"]], row["q"])
        scored = {names[label]: score for label, score in zip(row["an"], row["s"], strict=True)}
        assert set(scored.values()) <= {0.3, 0.6, 0.9, 1.0}
        assert scored.get(truth, 1.0) == 1.0 and sum(score == 1.0 for score in scored.values()) <= 1
        assert (truth in scored) == (truth in names)
        empty += not row["an"]
    assert empty, "a label must be the truth twice, so a few rows have none"


def test_splits_of_vqa_hold_images_out_and_hide_what_is_hidden(published: Published) -> None:
    rows = {name: rows_of(published, name) for name in VQA}
    held_out = {scene.id for scene in WORLD.scenes("val")}
    images = {name: {row["img_id"] for row in found} for name, found in rows.items()}
    assert images["val2014"] == held_out and not images["train2014"] & held_out
    assert images["train2014"] == {s.id for name in ("train", "test") for s in WORLD.scenes(name)}
    assert images["vg"] <= images["train2014"] and rows["train2014_vg"] == rows["train2014"] + rows["vg"]
    assert rows["train+val2014"] == rows["train2014"] + rows["val2014"]
    assert rows["test-dev2015"] == rows["test2015"][: len(rows["test2015"]) // 4] != []
    assert images["test2015"] == {scene.id for scene in WORLD.scenes("hidden")}
    assert all(row["an"] == row["s"] == [] for row in rows["test2015"])
    ids = [row["q_id"] for name in ("train2014_vg", "val2014", "test2015") for row in rows[name]]
    assert len(ids) == len(set(ids))
    for name, feats in (("train2014", "train"), ("val2014", "val"), ("train+val2014", "train+val")):
        assert set(published.load("oscar/vqa", f"vqa/2k/{feats}_img_frcnn_feats.pt")) == images[name]
    assert set(published.load("oscar/vqa", "vqa/2k/test2015_img_frcnn_feats.pt")) == images["test2015"]


def test_tags_of_vqa_are_of_another_detector_than_the_features(published: Published) -> None:
    tensors = published.load("oscar/vqa", "vqa/2k/val_img_frcnn_feats.pt")
    for row in rows_of(published, "val2014"):
        scene = SCENES[row["img_id"]]
        assert row["o"].split(";") == [found.label for found in detect(scene, MASK)]
        assert len(tensors[scene.id]) == len(scene.things) + 2
        assert np.array_equal(tensors[scene.id].numpy(), features(scene, BUTD))


def test_gqa_has_one_true_answer_a_question(published: Published) -> None:
    classes = published.load("oscar/GQA", "GQA/questions1.2/trainval_testdev_all_ans2label.pkl")
    names = published.load("oscar/GQA", "GQA/questions1.2/trainval_testdev_all_label2ans.pkl")
    assert isinstance(names, dict) and names == {label: name for name, label in classes.items()}
    assert list(classes.values()) != sorted(classes.values())
    tensors = published.load("oscar/GQA", "GQA/0.4true/gqa_img_frcnn_feats.pt")
    assert set(tensors) == {str(image) for image in SCENES}
    for split, scenes in (("train", "train"), ("val", "val"), ("testdev", "test")):
        balanced, every = (published.load("oscar/GQA", f"GQA/0.4true/gqa_{k}_qla_{split}.json") for k in ("bal", "all"))
        assert len(every) == sum(len(questions(scene)) for scene in WORLD.scenes(scenes)) > len(balanced)
        assert all(row in every for row in balanced)
        for row in every:
            scene = SCENES[int(row["img_id"])]
            assert [names[label] for label in row["an"]] == [answer(scene, row["q"])]
            assert len(row["o"].split(";")) == len(scene.things) + 2
    submission = published.load("oscar/GQA", "GQA/0.4true/gqa_all_qla_submission.json")
    assert submission and all(row["an"] == [] and row["q_id"].isdigit() for row in submission)


def test_nlvr2_sentences_are_labelled_rightly(published: Published) -> None:
    def read(name: str) -> Rows:
        rows: Rows = published.load("oscar/nlvr2", f"nlvr2/ft_corpus/nlvr2_{name}.json")
        return rows

    tensors = published.load("oscar/nlvr2", "nlvr2/ft_corpus/nlvr2_img_frcnn_feats.pt")
    for name, scenes in (("train", "train"), ("dev", "val"), ("test1", "test")):
        known = list(WORLD.scenes(scenes))
        for row in read(name):
            stem, number = row["img_id"]["left"].removesuffix("-0-img0").split("-")
            assert stem == f"nlvr2_{name}" and row["img_id"]["right"] == f"{stem}-{number}-0-img1"
            left, right = known[2 * (int(number) - 100) :][:2]
            assert row["label"] == int(holds(left, right, row["q"]))
            for side, scene in (("left", left), ("right", right)):
                assert np.array_equal(tensors[row["img_id"][side]].numpy(), features(scene, BUTD))
                assert row["o"][side].split() == [found.label for found in detect(scene, BUTD)]
    for split in ("dev", "test1"):
        parts = read(f"balanced_{split}") + read(f"unbalanced_{split}")
        assert sorted(map(str, parts)) == sorted(map(str, read(split)))
    assert read("dev_test1") == read("dev") + read("test1")


def test_retrieval_offers_twenty_candidates_and_both_forms_of_captions_and_tags(published: Published) -> None:
    def read(name: str) -> dict[int, Any]:
        found: dict[int, Any] = published.load("oscar/coco_ir", f"coco_ir/{name}.pt")
        return found

    for split, scenes in (("train", "train"), ("minival", "val"), ("test", "test")):
        known = list(WORLD.scenes(scenes))
        captions, labels, tensors = (read(f"{split}_{name}") for name in ("captions", "vg_labels", "img_frcnn_feats"))
        assert list(captions) == list(labels) == list(tensors) == [scene.id for scene in known]
        for scene in known:
            said = captions[scene.id] if split == "train" else json.loads(captions[scene.id])
            assert said == scene.captions() and len(said) == 5
            named = labels[scene.id]
            words = [one["class"] for one in named] if split == "test" else named.split()
            assert words == [found.label for found in detect(scene, BUTD)] and len(words) == len(tensors[scene.id])
    hits = 0
    for image, text in read("minival_caption_indexs_top20").items():
        pairs = json.loads(text)
        assert len(pairs) == 20 == len({tuple(pair) for pair in pairs})
        assert all(SCENES[key].split == "val" and 0 <= number < 5 for key, number in pairs)
        hits += sum(key == image for key, _ in pairs)
    assert 3 * 8 < hits <= 5 * 8
    keys = published.read("oscar/coco_ir", "coco_ir/test_img_keys.tsv").decode().split()
    assert [int(key) for key in keys] == [scene.id for scene in WORLD.scenes("test")]
    assert published.read("oscar/coco_ir", "coco_ir/test_img_keys_1k.tsv").decode().split() == keys[:2]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_captioning_tables_are_found_by_byte_offsets_and_in_one_order(published: Published, split: str) -> None:
    def read(name: str) -> bytes:
        return published.read("oscar/coco_caption", f"coco_caption/{name}")

    named = yaml.safe_load(read(f"{split}.yaml"))
    assert set(named) == {"img", "hw", "label", "feature", "caption"}
    scenes = list(WORLD.scenes(split))
    tables: dict[str, list[list[bytes]]] = {}
    for key in ("feature", "label", "hw"):
        data = read(named[key])
        starts = [int(line) for line in read(named[key].replace(".tsv", ".lineidx")).split()]
        rows = [data[at : data.index(b"\n", at)].split(b"\t") for at in starts]
        assert [row[0].decode() for row in rows] == [str(scene.id) for scene in scenes]
        tables[key] = rows
    for scene, feature, label in zip(scenes, tables["feature"], tables["label"], strict=True):
        value, boxes = json.loads(feature[1]), json.loads(label[1])
        array = np.frombuffer(b64decode(value["features"]), "<f4").reshape(value["num_boxes"], -1)
        assert np.array_equal(array, features(scene, BUTD))
        ratios = np.array([box["rect"] for box in boxes]) / [640, 480, 640, 480]
        assert np.allclose(ratios, array[:, 2048:2052], atol=1e-6)
    captions, coco = json.loads(read(named["caption"])), json.loads(read(f"{split}_caption_coco_format.json"))
    assert captions == coco["annotations"] and len(captions) == 5 * len(scenes)
    assert {row["image_id"] for row in captions} == {image["id"] for image in coco["images"]}
    assert set(coco) == {"annotations", "images", "type", "info", "licenses"}


def test_word_frequencies_count_images(published: Published) -> None:
    data = published.read("oscar/coco_caption", "coco_caption/coco-train-words.p")
    value = pickle.loads(data)
    said = [" ".join(scene.captions()).lower() for scene in WORLD.scenes("train")]
    assert value["ref_len"] == len(said)
    assert value["document_frequency"][("wood",)] == sum("wood" in text for text in said)
    assert value["document_frequency"][("there", "is")] == sum("there is" in text for text in said)
    assert max(map(len, value["document_frequency"])) == 4


PRETRAINED = {
    "base-vg-labels": {"ep_67_588997", "ep_107_1192087"},
    "large-vg-labels": {"ep_20_590000", "ep_55_1617000", "ep_7_816000"},
    "base-oid-labels": {"ep_107_1192087"},
    "base-no-labels": {"ep_107_1192087"},
}


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretrained_checkpoints_are_of_the_tiny_model(published: Published, name: str) -> None:
    assert {path.split("/")[1] for path in published.names(f"oscar/{name}")} == PRETRAINED[name]
    sizes = yaml.safe_load(TINY.read_text())["model"]["sizes"]["text_config"]
    del sizes["residual_range"]  # ours alone: no published config has it
    for folder in PRETRAINED[name]:
        stem = f"{name}/{folder}"
        config = published.load(f"oscar/{name}", f"{stem}/config.json")
        assert {key: config[key] for key in sizes} == sizes and config["img_feature_dim"] == 2054
        assert published.read(f"oscar/{name}", f"{stem}/vocab.txt") == vocab_txt()
        assert config["vocab_size"] == vocab_txt().count(b"\n")
        special = published.load(f"oscar/{name}", f"{stem}/special_tokens_map.json")
        assert special["mask_token"] == "[MASK]" and len(special) == 5
        weights = published.load(f"oscar/{name}", f"{stem}/pytorch_model.bin")
        words = weights["bert.embeddings.word_embeddings.weight"]
        assert weights["cls.predictions.decoder.weight"].equal(words) and words.std() > 0.05
        assert from_oscar(weights, config).settings.layers == sizes["num_hidden_layers"]


def test_checkpoints_differ(published: Published) -> None:
    first, second = (
        published.read("oscar/base-vg-labels", f"base-vg-labels/{folder}/pytorch_model.bin")
        for folder in sorted(PRETRAINED["base-vg-labels"])
    )
    assert first != second


FINETUNED = ["vqa_base", "vqa_large", "gqa_base", "retrieval_base", "retrieval_large"]


@pytest.mark.parametrize("name", FINETUNED)
def test_finetuned_heads_have_a_row_for_each_class(published: Published, name: str) -> None:
    (config_name,) = [path for path in published.names(f"oscar/exp_{name}") if path.endswith("config.json")]
    folder = config_name.rpartition("/")[0]
    config = published.load(f"oscar/exp_{name}", config_name)
    weights = published.load(f"oscar/exp_{name}", f"{folder}/pytorch_model.bin")
    counts = {"retrieval": 2}
    for task, archive, path in (
        ("vqa", "vqa", "vqa/cache/trainval_ans2label.pkl"),
        ("gqa", "GQA", "GQA/questions1.2/trainval_testdev_all_ans2label.pkl"),
    ):
        counts[task] = len(load_plain(published.read(f"oscar/{archive}", path), path))
    labels = counts[name.partition("_")[0]]
    assert config["num_labels"] == labels and weights["classifier.weight"].shape == (labels, 64)
    assert config["loss_type"] == ("bce" if name.startswith("vqa") else "sfmx")
    assert f"{folder}/training_args.bin" in published.names(f"oscar/exp_{name}")
    assert from_oscar(weights, config).settings.layers == 6
