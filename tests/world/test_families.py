"""Exports of every family: at the cards' addresses, in the published forms, and true by geometry recomputed."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from PIL import Image
from pyarrow import parquet

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.errors import DiskError
from lavis_ext.demo.mirror import url_of, urls_of
from lavis_ext.demo.world import Scene, World
from lavis_ext.fetch.mirrors import mirror_path
from lavis_ext.metrics.vqa import vqa_score
from tests.support.geometry import NOUN, NUMBERS, answer, directions, holds, meant, plain
from tests.world.export import BY_HAND, EXPORTS, NEEDS, export_world, place_by_hand
from tests.world.questions import questions

WORLD = World(seed=13, train=44, val=10, test=10, hidden=6)
SCENES = {scene.id: scene for scene in WORLD}
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("families")
    export_world(WORLD, root)
    return root


def load(root: Path, reference: str, member: str = "") -> Any:
    """A JSON file of the mirror, or one in an archive of it."""
    path = root / mirror_path(url_of(reference))
    if not member:
        return json.loads(path.read_text())
    if path.suffix == ".zip":
        with ZipFile(path) as archive:
            return json.loads(archive.read(member))
    with tarfile.open(path) as tar:
        file = tar.extractfile(member)
        assert file is not None
        return json.loads(file.read())


def scene_of(image: str) -> Scene:
    """The scene whose id ends a file's name."""
    digits = re.findall(r"(\d+)\.jpg$", image)
    return SCENES[int(digits[0])]


def knows(scene: Scene, text: str) -> str:
    """The answer to a question that needs knowledge, else that of geometry."""
    corners = {"circle": 0, "ring": 0, "triangle": 3, "square": 4, "star": 10, "cross": 12}
    if found := re.fullmatch(r"How many corners does the (\w+) shape have\?", text):
        (shape,) = {t.shape for t in scene.things if t.colour == found[1]}
        return str(corners[shape])
    if found := re.fullmatch(r"Could the (\w+) shape roll\?", text):
        (shape,) = {t.shape for t in scene.things if t.colour == found[1]}
        return "yes" if not corners[shape] else "no"
    if found := re.fullmatch(r"Which two paints make the color of the (\w+)\?", text):
        (colour,) = {t.colour for t in scene.things if t.shape == found[1]}
        mixed = {"orange": "red and yellow", "green": "blue and yellow", "purple": "red and blue"}
        return {**mixed, "pink": "red and white"}[colour]
    if text == "Where does the material of the background come from?":
        return "mountains" if scene.background == "stone" else "trees"
    return answer(scene, text)


def test_every_address_of_the_cards_is_on_the_mirror_and_nothing_unknown(mirror: Path) -> None:
    files = json.loads((mirror / "manifest.json").read_text())["files"]
    cards = load_cards()
    folders: set[str] = set()
    for family in EXPORTS:
        for artifact in cards.families[family].artifacts.values():
            key = mirror_path(artifact.url.replace("{part:05d}", "00000"))
            declared = [f"{key}/{name}" for name in artifact.folder.files] if artifact.folder else [key]
            assert set(declared) <= set(files), (family, artifact.name)
            folders |= {f"{key}/"} if artifact.folder else set()
    known = {mirror_path(url) for family in EXPORTS for url in urls_of(family)}
    known |= {key for key in files if "karpathy" in key and key.endswith("_gt.json")}
    lists = ("static.flickr.com/", "pictures.example.org/laion/", "s3.amazonaws.com/nocaps/", *folders)
    assert {key for key in files if key not in known and not key.startswith(lists)} == set()


def test_families_that_are_not_exported_have_nothing_to_fetch() -> None:
    left = {name: card for name, card in load_cards().families.items() if name not in EXPORTS}
    # volta's files are made from those of coco, which are exported. Those of `drawn` are in tests/support/families,
    # they are in the shapes and forms that the others have.
    drawn = {"cc_wds", "coco2017", "docci", "llava", "scienceqa", "sharegpt4v", "textcaps", "textvqa", "vizwiz"}
    assert {name for name, card in left.items() if card.artifacts} == {"mscoco", *drawn}


def test_the_same_world_makes_the_same_bytes(tmp_path: Path) -> None:
    world = World(seed=2, train=4, val=2, test=2, hidden=1)
    first, second = (export_world(world, tmp_path / name).read_text() for name in "ab")
    assert first == second
    assert export_world(World(seed=3, train=4, val=2, test=2, hidden=1), tmp_path / "c").read_text() != first


@pytest.mark.parametrize("family", NEEDS)
def test_images_of_another_family_come_along(family: str, tmp_path: Path) -> None:
    files = json.loads(export_world(World(2, 4, 2, 2, 1), tmp_path, [family]).read_text())["files"]
    assert {mirror_path(url_of(f"coco/{name}")) for name in ("train2014", "val2014", "test2015")} < set(files)


@pytest.mark.parametrize(("family", "prefix"), [("vqav2", "v2_"), ("okvqa", "")])
@pytest.mark.parametrize("split", ["train", "val"])
def test_most_people_tell_the_truth(mirror: Path, family: str, prefix: str, split: str) -> None:
    subset = f"{split}2014"
    questions = load(mirror, f"{family}/questions_{split}", f"{prefix}OpenEnded_mscoco_{subset}_questions.json")
    answers = load(mirror, f"{family}/annotations_{split}", f"{prefix}mscoco_{subset}_annotations.json")
    assert questions["data_subtype"] == answers["data_subtype"] == subset
    given = {row["question_id"]: row for row in answers["annotations"]}
    assert len(given) == len(questions["questions"])
    scores = []
    for row in questions["questions"]:
        assert row["question_id"] // 1000 == row["image_id"]
        record, truth = given[row["question_id"]], knows(SCENES[row["image_id"]], row["question"])
        said = [one["answer"] for one in record["answers"]]
        assert len(said) == 10 and said.count(truth) >= 7 and record["multiple_choice_answer"] == truth
        assert vqa_score(truth, said) == 1
        scores += [vqa_score(other, said) for other in set(said) - {truth}]
        assert record["answer_type"] == (
            "yes/no" if truth in ("yes", "no") else "number" if truth.isdigit() else "other"
        )
    assert scores and max(scores) < 1 and any(score > 0 for score in scores)


@pytest.mark.parametrize("family", ["vqav2", "okvqa"])
def test_lavis_form_says_the_same_as_the_official_one(mirror: Path, family: str) -> None:
    rows: Rows = load(mirror, f"{family}/lavis_val_eval")
    questions = load(mirror, f"{family}/lavis_questions_val")["questions"]
    answers = load(mirror, f"{family}/lavis_annotations_val")["annotations"]
    for row, question, record in zip(rows, questions, answers, strict=True):
        assert (row["question_id"], row["question"]) == (question["question_id"], question["question"])
        assert row["answer"] == [one["answer"] for one in record["answers"]]
        assert scene_of(row["image"]).id == question["image_id"] and row["image"].startswith("val2014/COCO_val2014_")
    said = {answer for row in [*rows, *load(mirror, f"{family}/lavis_train")] for answer in row["answer"]}
    assert set(load(mirror, f"{family}/lavis_answer_list")) == said


def test_answers_of_hidden_scenes_stay_hidden(mirror: Path) -> None:
    name = "v2_OpenEnded_mscoco_{}_questions.json"
    test, development = (load(mirror, "vqav2/questions_test", name.format(s)) for s in ("test2015", "test-dev2015"))
    assert {row["image_id"] for row in test["questions"]} == {scene.id for scene in WORLD.scenes("hidden")}
    assert development["questions"] == test["questions"][: len(development["questions"])] != []
    for row in [*load(mirror, "vqav2/lavis_test"), *load(mirror, "gqa/test_balanced")]:
        assert "answer" not in row
    for row in load(mirror, "aokvqa/test"):
        assert len(row["choices"]) == 4 and not {"correct_choice_idx", "direct_answers", "rationales"} & set(row)


def test_one_of_four_choices_is_true(mirror: Path) -> None:
    for split in ("train", "val"):
        rows: Rows = load(mirror, f"aokvqa/{split}")
        for row in rows:
            truth = knows(scene_of(row["image"]), row["question"])
            assert len(set(row["choices"])) == 4 and row["choices"][row["correct_choice_idx"]] == truth
            assert row["direct_answers"].count(truth) >= 7
        assert {row["correct_choice_idx"] for row in rows} == {0, 1, 2, 3} or split == "val"
        official = load(mirror, "aokvqa/official", f"aokvqa_v1p0_{split}.json")
        assert official == [{key: value for key, value in row.items() if key != "image"} for row in rows]
    assert "trees" in load(mirror, "aokvqa/vocabulary")


def test_gqa_answers_are_true_and_both_forms_agree(mirror: Path) -> None:
    with ZipFile(mirror / mirror_path(url_of("gqa/images"))) as archive:
        images = {name for name in archive.namelist() if name.endswith(".jpg")}
    for split in ("train", "val", "testdev", "test"):
        rows: Rows = load(mirror, f"gqa/{split}_balanced")
        official = load(mirror, "gqa/questions", f"{split}_balanced_questions.json")
        assert len(rows) == len(official) > 0
        for row in rows:
            record = official[row["question_id"]]
            assert (f"{record['imageId']}.jpg", record["question"]) == (row["image"], row["question"])
            assert record.get("answer") == row.get("answer")
            assert f"images/{row['image']}" in images
            if split != "test":
                assert row["answer"] == answer(scene_of(row["image"]), row["question"])
    every = load(mirror, "gqa/train_all_0")
    assert len(every) == sum(len(questions(scene)) for scene in WORLD.scenes("train"))
    assert set(load(mirror, "gqa/questions", "train_balanced_questions.json")) < set(every)


def test_visual_genome_has_a_true_phrase_for_each_thing_and_true_answers(mirror: Path) -> None:
    rows: Rows = load(mirror, "vg/caption")
    found = Counter(row["image"] for row in rows)
    assert all(row["image"].startswith("/export/share/") for row in rows)
    for row in rows:
        (noun,) = re.findall(NOUN, row["caption"])
        assert meant(scene_of(row["image"]), *noun)
    assert {scene_of(image).id: n for image, n in found.items()} == {s.id: len(s.things) for s in WORLD.scenes("train")}
    asked: Rows = load(mirror, "vg/qa")
    for row in asked:
        assert row["answer"].lower().rstrip(".") == answer(scene_of(row["image"]), row["question"])
        assert re.fullmatch(r"image/\d+\.jpg", row["image"])
    pairs = [qa for row in load(mirror, "vg/question_answers", "question_answers.json") for qa in row["qas"]]
    assert [(qa["qa_id"], qa["answer"]) for qa in pairs] == [(row["question_id"], row["answer"]) for row in asked]
    for artifact, folder in (("images", "VG_100K"), ("images2", "VG_100K_2")):
        with ZipFile(mirror / mirror_path(url_of(f"vg/{artifact}"))) as archive:
            assert {name.partition("/")[0] for name in archive.namelist()} == {folder}


def test_nocaps_has_ten_true_captions_and_true_domains(mirror: Path) -> None:
    val = load(mirror, "nocaps/val_captions")
    scenes = dict(zip((image["id"] for image in val["images"]), WORLD.scenes("val"), strict=True))
    said = Counter(row["image_id"] for row in val["annotations"])
    assert set(said.values()) == {10}
    for row in val["annotations"]:
        scene, text = scenes[row["image_id"]], plain(row["caption"])
        nouns = re.findall(NOUN, text)
        assert nouns and all(meant(scene, *noun) for noun in nouns)
        for number, *noun in re.findall(rf"\b(two|three) {NOUN}", text):
            assert len(meant(scene, *noun)) == NUMBERS[number]
        for ground in re.findall(r"(paper|wood|stone) background", text):
            assert ground == scene.background
    for image in val["images"]:
        novel = {thing.shape in ("ring", "cross") for thing in scenes[image["id"]].things}
        names = {frozenset({False}): "in-domain", frozenset({True}): "out-domain"}
        assert image["domain"] == names.get(frozenset(novel), "near-domain")
    test = load(mirror, "nocaps/test_info")
    assert "annotations" not in test and not any("domain" in image for image in test["images"])
    for split, content in (("val", val), ("test", test)):
        assert load(mirror, f"nocaps/lavis_{split}") == [
            {"image": f"{split}/{image['file_name']}", "img_id": image["id"]} for image in content["images"]
        ]
        assert all((mirror / mirror_path(image["coco_url"])).is_file() for image in content["images"])


def test_some_web_links_are_dead_or_lead_astray(mirror: Path) -> None:
    rows: Rows = load(mirror, "sbu_caption/captions")
    bodies = [mirror / mirror_path(row["url"]) for row in rows]
    dead = [i for i, body in enumerate(bodies) if not body.is_file()]
    pages = [i for i, body in enumerate(bodies) if body.is_file() and body.read_bytes().startswith(b"<!doctype")]
    stand_ins = [i for i, row in enumerate(rows) if "photo_unavailable" in row["url"]]
    assert (dead, pages, stand_ins) == ([3, 13, 23, 33, 43], [7, 27], [17, 37])
    with tarfile.open(mirror / mirror_path(url_of("sbu_caption/images_tar"))) as tar:
        alive = {row["image"] for i, row in enumerate(rows) if i not in {*dead, *pages, *stand_ins}}
        assert set(tar.getnames()) == alive
    with Image.open(bodies[17]) as stand_in:
        assert stand_in.size == (200, 150)


def test_laion_metadata_have_scores_and_the_best_caption(mirror: Path) -> None:
    rows = parquet.read_table(mirror / mirror_path(url_of("laion/metadata"))).to_pylist()
    assert len(rows) == 44
    for row, scene in zip(rows, WORLD.scenes("train"), strict=True):
        best = max(zip(row["all_similarities"], row["all_captions"], strict=True))[1]
        assert row["top_caption"] == best and row["all_captions"] == scene.captions()
    assert sum((mirror / mirror_path(row["URL"])).is_file() for row in rows) == 39


def test_long_descriptions_are_true(mirror: Path) -> None:
    rows = load(mirror, "minigpt4/align", "cc_sbu_align/filter_cap.json")["annotations"]
    with ZipFile(mirror / mirror_path(url_of("minigpt4/align"))) as archive:
        assert {f"cc_sbu_align/image/{row['image_id']}.jpg" for row in rows} < set(archive.namelist())
    clause = re.compile(rf"the {NOUN} is (to the left of|to the right of|above|below) the {NOUN}")
    related = 0
    for row, scene in zip(rows, WORLD.scenes("train"), strict=True):
        text = plain(row["caption"])
        number = re.match(r"the image shows (one|two|three) shapes? on a (\w+) background", text)
        assert number and (NUMBERS[number[1]], number[2]) == (len(scene.things), scene.background)
        assert all(meant(scene, *noun) for noun in re.findall(NOUN, text))
        for *a, phrase, b_size, b_colour, b_shape in clause.findall(text):
            (first,), (second,) = meant(scene, *a), meant(scene, b_size, b_colour, b_shape)
            assert phrase in directions(first, second)
            related += 1
    assert related > 10


@pytest.mark.parametrize(("name", "split"), [("train", "train"), ("dev", "val"), ("test", "test")])
def test_sentences_about_pairs_are_labelled_rightly(mirror: Path, name: str, split: str) -> None:
    rows: Rows = load(mirror, f"nlvr/{name}")
    lines = (mirror / mirror_path(url_of(f"nlvr/official_{name}"))).read_text().splitlines()
    scenes = list(WORLD.scenes(split))
    for row, line in zip(rows, lines, strict=True):
        first = 2 * (int(row["images"][0].split("-")[-3]) - 100)
        assert row["label"] == str(holds(scenes[first], scenes[first + 1], row["sentence"]))
        record = json.loads(line)
        stem = record["identifier"].rpartition("-")[0]
        assert (record["sentence"], record["label"]) == (row["sentence"], row["label"])
        assert [Path(image).name for image in row["images"]] == [f"{stem}-img{side}.png" for side in (0, 1)]
    assert {row["label"] for row in rows} == {"True", "False"}


def test_sentences_follow_contradict_or_are_open(mirror: Path) -> None:
    rows: Rows = load(mirror, "snli_ve/train")
    assert Counter(row["label"] for row in rows) == dict.fromkeys(("entailment", "contradiction", "neutral"), 44)
    for row in rows:
        nouns = [meant(SCENES[int(row["image"])], *noun) for noun in re.findall(NOUN, plain(row["sentence"]))]
        assert all(nouns) == (row["label"] != "contradiction")


def test_what_comes_on_request_is_put_in_place_once(tmp_path: Path) -> None:
    world = World(seed=2, train=4, val=2, test=2, hidden=1)
    assert place_by_hand(world, tmp_path, ["nlvr", "flickr30k", "coco"]) == 8 + 8
    kept = tmp_path / "flickr30k" / "images" / "flickr30k-images" / f"{world.scene('train', 0).id}.jpg"
    kept.write_bytes(b"mine")
    assert place_by_hand(world, tmp_path, BY_HAND) == 0
    assert kept.read_bytes() == b"mine"
    (png,) = (tmp_path / "nlvr" / "images" / "dev").glob("*-img1.png")
    with Image.open(io.BytesIO(png.read_bytes())) as picture:
        assert (picture.format, picture.size) == ("PNG", (320, 240))
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        place_by_hand(world, tmp_path / "file", ["nlvr"])
