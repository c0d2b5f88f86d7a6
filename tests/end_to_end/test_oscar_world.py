"""Every data set on region features, built from what the demo exports and the verb prepares, and true by geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common.config.cards import load_cards
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.demo.world import World
from lavis_ext.prepare import PrepareOptions, prepare
from tests.support.geometry import answer
from tests.world.export import export_world
from tests.world.questions import questions
from tests.world.vqa import QUESTIONS

pytestmark = pytest.mark.slow
WORLD = World(seed=5, train=16, val=4, test=4, hidden=4)
SCENES = {scene.id: scene for scene in WORLD}
ASKED = sum(len(questions(scene)) for scene in WORLD.scenes("hidden"))
READ = [
    *(f"oscar/{name}" for name in ("vqa", "GQA", "nlvr2", "coco_ir", "coco_caption", "base-vg-labels")),
    *(f"vinvl/{name}" for name in ("nocaps", "corpus_small*", "features_coco", "features_flickr30k", "features_gqa")),
]
COUNTS = {
    "oscar_gqa": {"train": 48, "val": 12, "testdev": 12, "test": ASKED},
    "oscar_nlvr2": {"train": 16, "val": 4, "test": 4},
    "oscar_coco_ir": {"train": 80, "val": 4, "test": 4},
    "oscar_coco_caption": {"train": 80, "val": 4, "test": 4},
    "oscar_nocaps": {"val": 4, "test": 4},
    "oscar_pretrain": {"train": 16 * 5 * 2 + 48},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache root with what the data sets read of both families."""
    folder = tmp_path_factory.mktemp("world")
    export_world(WORLD, folder / "mirror", ["oscar", "vinvl"])
    options = PrepareOptions(cache_root=folder / "cache", mirror=str(folder / "mirror"), reserve=0)
    report = prepare(READ, options)
    assert report.exit_code == 0, report.lines()
    return folder / "cache"


def build(root: Path, name: str) -> dict[str, Any]:
    """Its splits."""
    return dict(build_datasets(load_cards().dataset(name), BuildContext(root)))


@pytest.mark.parametrize("name", COUNTS)
def test_it_builds_with_its_counts_and_collates(root: Path, name: str) -> None:
    built = build(root, name)
    assert {split: len(dataset) for split, dataset in built.items()} == COUNTS[name]
    for dataset in built.values():
        batch = dataset.collater([dataset[0], dataset[len(dataset) - 1]])
        assert batch["img_feats"].shape[-1] == 2054 and batch["img_feats"].dtype == torch.float32
        assert len(batch["img_feats"]) in (2, 4)


def test_the_best_class_of_a_vqa_question_is_its_true_answer(root: Path) -> None:
    built = build(root, "oscar_vqa")
    assert len(built["val"]) <= 4 * QUESTIONS and len(built["train"]) <= 20 * QUESTIONS
    assert (len(built["test"]), len(built["test_dev"])) == (12, 3)
    told = 0
    for split in ("train", "val"):
        dataset = built[split]
        answers = dataset.labels.answers
        batch = dataset.collater([dataset[number] for number in range(len(dataset))])
        for row, image in zip(batch["targets"], batch["image_id"], strict=True):
            scene = SCENES[int(image)]
            truths = {answer(scene, question.text) for question in questions(scene)}
            if row.max() == 1:
                assert answers[int(row.argmax())] in truths
                told += 1
    assert told > 40


def test_labels_of_gqa_are_the_one_true_answer(root: Path) -> None:
    dataset = build(root, "oscar_gqa")["val"]
    batch = dataset.collater([dataset[number] for number in range(len(dataset))])
    for label, question_id in zip(batch["labels"], batch["question_id"], strict=True):
        scene = SCENES[int(str(question_id)[:-2])]
        question = questions(scene)[int(str(question_id)[-2:])]
        assert dataset.labels.answers[int(label)] == answer(scene, question.text)
