"""VinVL's folders of the demo world: rows found by side files, corpora whose keys resolve, models of its kind."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
import yaml

from lavis_ext.common.config.cards import load_cards
from lavis_ext.oscar.convert import find_folder, from_oscar, read_folder
from lavis_ext.oscar.import_args import import_command
from lavis_ext.prepare import PrepareOptions, prepare
from tests.support.geometry import answer
from tests.support.oscar_world import SCENES, WORLD, Published
from tests.world.regions import X152C4, detect, features

CARD = load_cards().families["vinvl"]
FLAT = ["coco", "flickr30k", "gqa", "coco2014test", "coco2015test", "nlvr2"]
CHUNKED = ["googlecc", "sbu", "oi"]
CORPORA = {
    "small": ["coco", "flickr30k", "gqa"],
    "medium": ["coco", "flickr30k", "gqa", "oi"],
    "large": ["coco", "flickr30k", "googlecc", "gqa", "sbu", "oi"],
}


def table(published: Published, artifact: str, stem: str) -> dict[str, list[bytes]]:
    """A TSV by its first column, each row found through `.lineidx`."""
    data = published.read(artifact, f"{stem}.tsv")
    starts = [int(line) for line in published.read(artifact, f"{stem}.lineidx").split()]
    rows = [data[at : data.index(b"\n", at)].split(b"\t") for at in starts]
    assert len(data.splitlines()) == len(rows)
    return {row[0].decode(): row[1:] for row in rows}


def matrix(cells: list[bytes]) -> Any:
    """The features of a row of three columns."""
    return np.frombuffer(b64decode(cells[-1]), "<f4").reshape(int(cells[0]), 2054)


@pytest.mark.parametrize("name", FLAT)
def test_feature_rows_are_found_and_their_tags_lie_beside_them(published: Published, name: str) -> None:
    artifact = f"vinvl/features_{name}"
    rows, labels = table(published, artifact, "features"), table(published, artifact, "predictions")
    assert list(rows) == list(labels) and rows
    hidden = {str(scene.id) for scene in WORLD.scenes("hidden")}
    if name != "nlvr2":
        assert (set(rows) == hidden) if "test" in name else (set(rows) - hidden and set(rows) <= set(map(str, SCENES)))
    for key, cells in rows.items():
        value = json.loads(labels[key][0])
        assert (value["image_h"], value["image_w"]) == (480, 640)
        made = matrix(cells)
        assert len(value["objects"]) == len(made)
        ratios = np.array([one["rect"] for one in value["objects"]]) / [640, 480, 640, 480]
        assert np.allclose(ratios, made[:, 2048:2052], atol=1e-6)
    if name in ("coco", "flickr30k", "gqa"):
        numbers = published.load(artifact, "imageid2idx.json")
        assert [key for key, _ in sorted(numbers.items(), key=lambda item: item[1])] == list(rows)


def test_nlvr2_features_are_those_of_its_task(published: Published) -> None:
    tensors = published.load("vinvl/nlvr2", "nlvr2_img_frcnn_feats.pt")
    rows = table(published, "vinvl/features_nlvr2", "features")
    assert set(rows) == set(tensors)
    assert all(np.array_equal(matrix(cells), tensors[key].numpy()) for key, cells in rows.items())


@pytest.mark.parametrize("name", CHUNKED)
def test_web_images_lie_in_chunks(published: Published, name: str) -> None:
    artifact = f"vinvl/features_{name}"
    seen: list[str] = []
    for chunk in ("0", "1"):
        rows = table(published, artifact, f"{chunk}/features")
        assert list(published.load(artifact, f"{chunk}/imageid2idx.json")) == list(rows)
        seen += rows
    assert len(seen) == len(set(seen)) == 6
    assert list(published.load(artifact, "imageid2idx.json")) == list(table(published, artifact, "predictions_gt"))


def test_an_offset_map_holds_bytes_and_not_row_numbers(published: Published) -> None:
    data = published.read("vinvl/vqa", "val_img_frcnn_feats.tsv")
    offsets = published.load("vinvl/vqa", "val_img_frcnn_feats_offset_map.json")
    tensors = published.load("vinvl/vqa", "val_img_frcnn_feats.pt")
    assert {int(key) for key in offsets} == set(tensors)
    for key, at in offsets.items():
        cells = data[at : data.index(b"\n", at)].split(b"\t")
        assert cells[0].decode() == key and np.array_equal(matrix(cells[1:]), tensors[int(key)].numpy())


@pytest.mark.parametrize("size", CORPORA)
def test_every_key_of_a_corpus_leads_to_features_tags_and_answers(published: Published, size: str) -> None:
    named = yaml.safe_load(published.read(f"vinvl/corpus_{size}_list"))
    assert named["corpus"].split("_") == CORPORA[size] == list(named["image_label_path"])
    assert CARD.artifacts[f"corpus_{size}"].storage.endswith(f"/{named['corpus_file']}")
    for name, folder in named["image_feature_path"].items():
        assert f"vinvl/{folder}" == CARD.artifacts[f"features_{name}"].storage
        assert named["image_label_path"][name] == f"../{folder}"
    answers = {
        key: json.loads(cells[0])["labels"] for key, cells in table(published, "vinvl/features_gqa", "QA_fileB").items()
    }
    places = published.load("vinvl/features_gqa", "QA_qaid2idx.json")
    assert list(places) == list(answers)
    lines = published.read(f"vinvl/corpus_{size}").decode().splitlines()
    found: dict[str, set[str]] = {}
    for image_key, label_key, text in (line.split("\t") for line in lines):
        name, *middle, image = image_key.split("_")
        name = {"cc": "googlecc"}.get(name, name)
        folder = f"{middle[-1]}/" if name in CHUNKED else ""
        found.setdefault(name, set()).add(f"{folder}{image}")
        scene = SCENES[int(image)]
        assert scene.split == "train"
        if "qa" in label_key.split("_"):
            *_, owner, question = label_key.split("_")
            assert owner == image and answers[question] == [answer(scene, text)]
        else:
            assert label_key.split("_")[-1] == image and text in scene.captions()
    assert set(found) == set(CORPORA[size])
    for name, keys in found.items():
        folders = {key.rpartition("/")[0] for key in keys}
        for folder in folders:
            stem = f"{folder}/" if folder else ""
            known = published.load(f"vinvl/features_{name}", f"{stem}imageid2idx.json")
            assert {key.rpartition("/")[2] for key in keys if key.rpartition("/")[0] == folder} <= set(known)
        labels = {
            key: json.loads(cells[0])
            for key, cells in table(published, f"vinvl/features_{name}", "predictions_gt").items()
        }
        for key in keys:
            image = key.rpartition("/")[2]
            shapes = sorted(thing.shape for thing in SCENES[int(image)].things)
            assert sorted(one["class"] for one in labels[image]["gt_objects"]) == shapes


def test_nocaps_goes_by_its_own_numbers_and_names_its_constraints(published: Published) -> None:
    for split in ("val", "test"):
        named = published.load("vinvl/nocaps", f"{split}.yaml")
        assert "caption" not in named
        for key, name in named.items():
            assert name in published.names("vinvl/nocaps") or key == "img"
        info = published.load("vinvl/nocaps", f"nocaps_{split}_image_info.json")
        rows = table(published, "vinvl/nocaps", f"{split}.feature")
        assert [str(image["id"]) for image in info["images"]] == list(rows)
        scenes = list(WORLD.scenes(split))
        for scene, cells in zip(scenes, rows.values(), strict=True):
            raw = b64decode(json.loads(cells[0])["features"])
            assert raw == features(scene, X152C4).tobytes()
        boxes = table(published, "vinvl/nocaps", f"{split}.cbs_box")
        assert len(json.loads(boxes["0"][0])) == len(scenes[0].things)
    forms = dict(line.split("\t") for line in published.read("vinvl/nocaps", "tokenforms.tsv").decode().splitlines())
    assert forms["cross"] == "cross,crosses" and forms["star"] == "star,stars"
    tree = published.load("vinvl/nocaps", "hierarchy.json")
    assert {"ring", "cross"} == {node["LabelName"] for node in tree["Subcategory"][-1]["Subcategory"]}


def test_retrieval_has_captions_and_leaves_features_to_their_folder(published: Published) -> None:
    names = published.names("vinvl/coco_ir")
    assert "minival_caption_indexs_top20.pt" in names and not any("feats" in name for name in names)
    known = table(published, "vinvl/features_coco", "features")
    for split in ("train", "minival", "test"):
        assert {str(key) for key in published.load("vinvl/coco_ir", f"{split}_captions.pt")} <= set(known)


def checkpoint_of(published: Published, artifact: str, folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        published.load(artifact, f"{folder}/pytorch_model.bin"),
        published.load(artifact, f"{folder}/config.json"),
    )


@pytest.mark.parametrize(
    ("artifact", "folder", "head"),
    [
        ("model_coco_ir", "base/checkpoint-1340000", "cls.seq_relationship.weight"),
        ("model_coco_ir", "large/checkpoint-0132780", "classifier.weight"),
        ("model_vqa", "base/checkpoint-2000000", "cls.seq_relationship.weight"),
    ],
)
def test_open_checkpoints_have_vinvls_norm_of_regions(
    published: Published, artifact: str, folder: str, head: str
) -> None:
    weights, config = checkpoint_of(published, f"vinvl/{artifact}", folder)
    assert config["use_img_layernorm"] == 1 and weights["bert.LayerNorm.weight"].shape == (64,)
    assert len(weights[head]) == (3 if head.startswith("cls") else 2)
    from_oscar(weights, config)


@pytest.mark.parametrize(("size", "width"), [("base", 192), ("large", 128)])
def test_the_pair_classifier_has_a_norm_between(published: Published, size: str, width: int, tmp_path: Path) -> None:
    (tmp_path / "best.zip").write_bytes(published.read("vinvl/model_nlvr2", f"{size}/best.zip"))
    with ZipFile(tmp_path / "best.zip") as archive:
        archive.extractall(tmp_path)
    weights = torch.load(tmp_path / "best/pytorch_model.bin", weights_only=True)
    assert weights["classifier.0.weight"].shape == (width, 128) and weights["classifier.2.weight"].shape == (width,)
    assert weights["classifier.3.weight"].shape == (2, width)
    from_oscar(weights, json.loads((tmp_path / "best/config.json").read_text()))


def test_the_detector_names_classes_and_attributes(published: Published) -> None:
    labels = json.loads(published.read("vinvl/detector_labels"))
    assert labels["idx_to_label"][str(labels["label_to_idx"]["ring"])] == "ring"
    assert labels["attribute_to_idx"]["red"] == 1
    classes = {one.label for scene in WORLD for one in detect(scene, X152C4)}
    assert classes <= set(labels["label_to_idx"])


@pytest.mark.parametrize(
    "named",
    [
        "pretrained_models/image_captioning/pretrained_base",
        "vinvl/coco_ir/base/checkpoint-1340000",
        "vinvl/coco_ir/base/checkpoint-0660000",
        "vinvl/model_ckpts/vqa/base/checkpoint-2000000",
        "vinvl/model_ckpts/gqa/base/best",
    ],
)
def test_models_are_where_the_document_s_commands_look(
    named: str, prepared_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(prepared_models))
    found = import_command([f"run_vqa.py --do_train --model_name_or_path {named}"]).tree["model"]["pretrained"]
    assert read_folder(find_folder(found, "model.pretrained"), "model.pretrained").settings.layers == 6


@pytest.fixture(scope="module")
def prepared_models(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache root with VinVL's models, archives among them unpacked."""
    root = tmp_path_factory.mktemp("models")
    report = prepare(["vinvl/model_*"], PrepareOptions(cache_root=root, mirror=str(published.root), reserve=0))
    assert report.exit_code == 0 and not list(root.rglob("*.zip"))
    return root
