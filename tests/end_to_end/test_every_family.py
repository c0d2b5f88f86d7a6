"""Every family of the small world: exported, prepared from the mirror, and built under each of its registry names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext import load_dataset
from lavis_ext.common.config.cards import load_cards
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.demo.mirror import serve, url_of
from lavis_ext.demo.world import World
from lavis_ext.fetch.mirrors import mirror_path
from lavis_ext.metrics.vqa import vqa_score
from lavis_ext.prepare import PrepareOptions, prepare
from lavis_ext.prepare.report import Report
from tests.world.export import EXPORTS, WHOLE, export_world, place_by_hand, registry_names, wanted

pytestmark = pytest.mark.slow
WORLD = World(seed=5, train=16, val=4, test=4, hidden=4)
THINGS = sum(len(scene.things) for scene in WORLD.scenes("train"))
VQA = {"text_input": str, "question_id": int, "instance_id": str}
TRAIN_VQA = {**VQA, "answers": list, "weights": list}
CAPTION = {"text_input": str, "image_id": int, "instance_id": str}
EVAL_CAPTION = {"image_id": int, "instance_id": str}
CHOICES = {"choices": list, "correct_choice_idx": (int, type(None)), "direct_answers": (list, type(None))}
ANSWER = {"answer": (str, type(None))}
TEXT_ID = {"question_id": str}
KEYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **dict.fromkeys(("coco_caption", "flickr30k_caption"), (CAPTION, {**EVAL_CAPTION, "image_id": str})),
    **dict.fromkeys(("nocaps", "vg_caption", "sbu_caption"), (CAPTION, EVAL_CAPTION)),
    **dict.fromkeys(("minigpt4_self_instruct_caption", "cc_sbu_align"), (CAPTION, EVAL_CAPTION)),
    **dict.fromkeys(("coco_retrieval", "flickr30k"), (CAPTION, {"index": int})),
    **dict.fromkeys(("coco_vqa", "ok_vqa", "vg_vqa"), (TRAIN_VQA, VQA)),
    "aok_vqa": (TRAIN_VQA | TEXT_ID, VQA | TEXT_ID | CHOICES),
    "gqa": (TRAIN_VQA | TEXT_ID, VQA | TEXT_ID | ANSWER),
    "nlvr": ({"text_input": str, "label": int, "instance_id": str},) * 2,
    "snli_ve": ({"text_input": str, "label": int, "image_id": str, "instance_id": str},) * 2,
}
"""Data set → keys and types beside the image, of a training sample and of one of the other splits."""
# 16 scenes to train on, of which 4 lie in val2014 beside the 4 + 4 of val and test.
COUNTS: dict[str, dict[str, int]] = {
    "coco_caption": {"train": 80, "val": 4, "test": 4},
    "coco_retrieval": {"train": 80, "val": 4, "test": 4},
    "coco_vqa": {"train": 3 * 24, "val": 3 * 12, "test": 3 * 4},
    "aok_vqa": {"train": 12, "val": 12, "test": 4},
    "gqa": {"train": 48, "val": 12, "test": 12},
    "vg_caption": {"train": THINGS},
    "vg_vqa": {"train": 48},
    "nocaps": {"val": 4, "test": 4},
    "sbu_caption": {"train": 16},
    "minigpt4_self_instruct_caption": {"train": 16},
    "cc_sbu_align": {"train": 16},
    "nlvr": {"train": 16, "val": 4, "test": 4},
    "flickr30k": {"train": 80, "val": 4, "test": 4},
    "flickr30k_caption": {"train": 80, "val": 4, "test": 4},
    "snli_ve": {"train": 48, "val": 12, "test": 12},
}
# Data sets on region features have no picture in their samples: tests/oscar/datasets builds them.
BUILT = [name for family in EXPORTS for name in registry_names(family) if family not in ("laion", *WHOLE)]
SECOND_FORM = {
    "aokvqa": ["train", "val", "test", "vocabulary"],
    "gqa": ["train_balanced", "val_balanced", "testdev_balanced", "test_balanced"],
    "nlvr": ["train", "dev", "test"],
    "okvqa": ["questions_train", "questions_val", "annotations_train", "annotations_val"],
    "vg": ["qa"],
    "vqav2": ["questions_train", "questions_val", "questions_test", "annotations_train", "annotations_val"],
}
"""Family → the artifacts of the form that is preferred: without them the other one is taken."""


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("every") / "mirror"
    export_world(WORLD, root)
    return root


@pytest.fixture(scope="module")
def root(mirror: Path) -> Path:
    """The cache root that all tests share, with what comes on request in place."""
    place_by_hand(WORLD, mirror.parent / "cache", EXPORTS)
    return mirror.parent / "cache"


@pytest.fixture(scope="module")
def reports(mirror: Path, root: Path) -> dict[str, Report]:
    """What `prepare` says of each family; `laion` needs a server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVIS_EXT_MIRROR", str(mirror))
        patch.setenv("LAVIS_EXT_CACHE_ROOT", str(root))
        return {family: prepare(wanted(family)) for family in EXPORTS if family != "laion"}


@pytest.mark.parametrize(
    "family",
    [f for f in EXPORTS if f != "laion"],
)
def test_prepare_ends_well_and_says_that_it_is_a_subset(reports: dict[str, Report], family: str) -> None:
    report = reports[family]
    assert report.exit_code == 0, report.lines()
    assert report.subset
    for split in report.splits:
        wanted = "partial (subset)" if family == "sbu_caption" else "verified (subset)"
        assert split.state == wanted, split
    if family == "sbu_caption":
        assert report.splits[0].expected == 16 and report.splits[0].present == 13  # two dead links and a page


@pytest.mark.parametrize("family", ["coco", "vqav2", "nocaps", "minigpt4"])
def test_a_second_time_moves_nothing(reports: dict[str, Report], mirror: Path, root: Path, family: str) -> None:
    assert reports[family].exit_code == 0
    again = prepare([family], PrepareOptions(cache_root=root, mirror=str(mirror)))
    assert (again.exit_code, again.bytes_moved) == (0, 0)


@pytest.mark.parametrize("name", BUILT)
def test_every_name_builds_with_its_counts_and_keys(
    reports: dict[str, Report], root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(root))
    built = build_datasets(load_cards().dataset(name), BuildContext(root))  # with the processors of the card
    raw = load_dataset(name)  # without
    assert {split: len(dataset) for split, dataset in raw.items()} == {k: len(d) for k, d in built.items()}
    counts = COUNTS.get(name)
    if counts is not None:
        assert {split: len(dataset) for split, dataset in built.items()} == counts
    for split, dataset in built.items():
        keys = KEYS[name][split != "train"]
        images = ("image0", "image1") if name == "nlvr" else ("image",)
        for index in (0, len(dataset) - 1):
            sample = dict(dataset[index])
            for image in images:
                assert sample[image].shape == (3, 224, 224) and sample.pop(image).dtype == torch.float32
            assert sample.keys() == keys.keys()
            assert all(isinstance(sample[key], kind) for key, kind in keys.items()), sample
        batch = dataset.collater([dataset[0], dataset[1]])
        assert len(batch[images[0]]) == 2


def test_truth_scores_full_marks_by_the_references(
    reports: dict[str, Report], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leave-one-out score of the answers that people give most is 1, that of others is less."""
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(root))
    for name, split in (("coco_vqa", "val"), ("ok_vqa", "test")):
        references = load_dataset(name)[split].references()
        for answers in references.values():
            most = max(set(answers), key=answers.count)
            assert len(answers) == 10 and vqa_score(most, answers) == 1
            assert all(vqa_score(other, answers) < 1 for other in set(answers) - {most})


def test_nocaps_rows_keep_captions_and_domains(
    reports: dict[str, Report], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(root))
    val = load_dataset("nocaps")["val"]
    assert {val.row(i)["domain"] for i in range(4)} <= {"in-domain", "near-domain", "out-domain"}
    assert {len(captions) for captions in val.references().values()} == {10}


@pytest.mark.parametrize("family", SECOND_FORM)
def test_the_other_form_is_taken_where_a_mirror_has_no_more(mirror: Path, tmp_path: Path, family: str) -> None:
    """Same counts from LAVIS' files and from those of the authors, by a mirror whose manifest tells less."""
    manifest = json.loads((mirror / "manifest.json").read_text())
    for name in SECOND_FORM[family]:
        del manifest["files"][mirror_path(url_of(f"{family}/{name}"))]
    other = tmp_path / "mirror"
    for path in (p for p in mirror.iterdir() if p.is_dir()):
        other.mkdir(exist_ok=True)
        (other / path.name).symlink_to(path)
    (other / "manifest.json").write_text(json.dumps(manifest))
    place_by_hand(WORLD, tmp_path, [family])
    report = prepare([family], PrepareOptions(cache_root=tmp_path, mirror=str(other)))
    for name in registry_names(family):
        built = build_datasets(load_cards().dataset(name), BuildContext(tmp_path))
        counts = {split: len(dataset) for split, dataset in built.items()}
        assert counts == COUNTS.get(name, counts)
        assert all(dataset[len(dataset) - 1] for dataset in built.values())
    assert report.exit_code == 0, report.lines()


def test_lists_of_the_web_know_a_stand_in_behind_a_server(tmp_path: Path) -> None:
    world = World(seed=5, train=20, val=0, test=0, hidden=0)
    export_world(world, tmp_path / "mirror", ["sbu_caption"])
    with serve(tmp_path / "mirror") as url:
        report = prepare(["sbu_caption"], PrepareOptions(cache_root=tmp_path / "cache", mirror=url, processes=1))
    assert (report.exit_code, report.splits[0].present, report.splits[0].expected) == (0, 16, 20)
    told = " ".join(note for outcome in report.outcomes for note in outcome.notes)
    assert "HTTP 404 ×2" in told and "placeholder ×1" in told and "HTML page" in told


def test_laion_coco_becomes_shards(tmp_path: Path) -> None:
    world = World(seed=5, train=20, val=0, test=0, hidden=0)
    export_world(world, tmp_path / "mirror", ["laion"])
    with serve(tmp_path / "mirror") as url:
        report = prepare(["laion"], PrepareOptions(cache_root=tmp_path / "cache", mirror=url, max_samples=20))
    assert report.exit_code == 0, report.lines()
    stream = build_datasets(load_cards().dataset("laion_coco"), BuildContext(tmp_path / "cache"))["train"]
    samples = list(stream)
    assert len(samples) == 17
    captions = {caption.lower().rstrip(" .") for scene in world for caption in scene.captions()}
    for sample in samples:
        assert sample["image"].shape == (3, 224, 224)
        told = f"{sample['text_input']} {sample['text_output']}".strip()
        assert told in captions
