"""Visual Genome, nocaps, MiniGPT-4's alignment set, Flickr30k and SNLI-VE: what is said about the scenes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from lavis_ext.demo.coco import draw_jpeg
from lavis_ext.demo.language import NUMBERS, PHRASES, arrangement, article, named, placed, plural, sized, the
from lavis_ext.demo.mirror import MirrorWriter, url_of
from lavis_ext.demo.things import COLOURS, HEIGHT, WIDTH, relation
from lavis_ext.demo.world import Scene, World
from tests.world.questions import ask, count

QUESTIONS = 3
VG_ELSEWHERE = "/export/share/datasets/vision/visual-genome/image"
"""The private folder that LAVIS' list of captions names."""
VG_FOLDERS = {"images": "VG_100K", "images2": "VG_100K_2"}
Row = dict[str, Any]


def export_vg(world: World, mirror: MirrorWriter) -> None:
    """Captions and questions about the training scenes; every third image lies in the second archive."""
    scenes = list(world.scenes("train"))
    parts = {"images": [s for i, s in enumerate(scenes) if i % 3 < 2], "images2": scenes[2::3]}
    for name, folder in VG_FOLDERS.items():
        members = [(f"{folder}/", b""), *((f"{folder}/{s.id}.jpg", draw_jpeg(s)) for s in parts[name])]
        mirror.add_zip(url_of(f"vg/{name}"), members)
    mirror.add_json(url_of("vg/caption"), [row for scene in scenes for row in phrase_rows(scene)])
    mirror.add_json(url_of("vg/qa"), [row for scene in scenes for row in question_rows(scene)])
    members = [("question_answers.json", json.dumps(official_questions(scenes)).encode())]
    mirror.add_zip(url_of("vg/question_answers"), members)


def phrase_rows(scene: Scene) -> list[Row]:
    """LAVIS' records of the regions of a scene."""
    about = {"image": f"{VG_ELSEWHERE}/{scene.id}.jpg", "image_id": f"vg_{scene.id}", "dataset": "vg"}
    return [{**about, "caption": sized(thing)} for thing in scene.things]


def question_rows(scene: Scene) -> list[Row]:
    """LAVIS' records of the questions about a scene: another name for the same image."""
    return [
        {
            "question_id": qa["qa_id"],
            "question": qa["question"],
            "answer": qa["answer"],
            "image": f"image/{scene.id}.jpg",
            "dataset": "vg",
        }
        for qa in asked_of(scene)
    ]


def official_questions(scenes: Sequence[Scene]) -> list[Row]:
    """The authors' `question_answers.json`: all questions about an image in one record."""
    return [{"id": scene.id, "qas": asked_of(scene)} for scene in scenes]


def asked_of(scene: Scene) -> list[Row]:
    """The authors' records of questions with their answers, which are sentences with a full stop."""
    asked = ask(scene, "vg", QUESTIONS)
    return [
        {
            "image_id": scene.id,
            "qa_id": scene.id * 100 + i,
            "question": question.text,
            "answer": f"{question.answer.capitalize()}.",
            "a_objects": [],
            "q_objects": [],
        }
        for i, question in enumerate(asked)
    ]


NOCAPS_HOST = "https://s3.amazonaws.com/nocaps"
NOVEL = frozenset({"ring", "cross"})
"""The shapes that count as objects which COCO does not know."""


def export_nocaps(world: World, mirror: MirrorWriter) -> None:
    """The authors' lists and LAVIS'; captions and domains of test are not published."""
    for split, artifact in (("val", "val_captions"), ("test", "test_info")):
        scenes = list(world.scenes(split))
        images = [image_row(scene, number) for number, scene in enumerate(scenes)]
        for scene, image in zip(scenes, images, strict=True):
            mirror.add(image["coco_url"], draw_jpeg(scene))
        content: Row = {"info": {"description": "a drawn world"}, "licenses": [], "images": images}
        if split == "val":
            content["annotations"] = caption_rows(scenes)
            content["images"] = [{**image, "domain": domain(s)} for image, s in zip(images, scenes, strict=True)]
        mirror.add_json(url_of(f"nocaps/{artifact}"), content)
        short = [{"image": f"{split}/{image['file_name']}", "img_id": image["id"]} for image in images]
        mirror.add_json(url_of(f"nocaps/lavis_{split}"), short)


def image_row(scene: Scene, number: int) -> Row:
    """The record of an image: nocaps' own number, and the id that Open Images gives."""
    key = f"{scene.id * 2_654_435_761 % 2**64:016x}"
    return {
        "id": number,
        "open_images_id": key,
        "file_name": f"{key}.jpg",
        "coco_url": f"{NOCAPS_HOST}/{scene.split}/{key}.jpg",
        "width": WIDTH,
        "height": HEIGHT,
        "license": 0,
        "date_captured": "2018-11-06 11:04:33",
    }


def domain(scene: Scene) -> str:
    """in-domain without novel shapes, out-domain with nothing else, near-domain between."""
    novel = sum(thing.shape in NOVEL for thing in scene.things)
    return "in-domain" if not novel else "out-domain" if novel == len(scene.things) else "near-domain"


def caption_rows(scenes: list[Scene]) -> list[Row]:
    """Ten captions of each scene, by the number of its image."""
    said = [(number, caption) for number, scene in enumerate(scenes) for caption in ten_captions(scene)]
    return [{"id": i, "image_id": number, "caption": caption} for i, (number, caption) in enumerate(said)]


def ten_captions(scene: Scene) -> list[str]:
    """The five captions of a scene and five more that are true of any."""
    shown = inventory(scene)
    return [
        *scene.captions(),
        f"A photo of {shown}.",
        f"{shown[0].upper()}{shown[1:]} seen from above.",
        f"{shown[0].upper()}{shown[1:]} in front of a {scene.background} background.",
        f"A {scene.background} background with {shown}.",
        f"Nothing but {shown}.",
    ]


def inventory(scene: Scene) -> str:
    """`a red circle, a blue star and a green ring`, or `two red circles`."""
    first, *rest = scene.things
    if rest and all(thing.kind == first.kind for thing in rest):
        return f"{NUMBERS[len(scene.things)]} {first.colour} {plural(first.shape)}"
    *most, last = map(named, scene.things)
    return f"{', '.join(most)} and {last}" if most else last


ALIGN_FOLDER = "cc_sbu_align"


def export_minigpt4(world: World, mirror: MirrorWriter) -> None:
    """`filter_cap.json` and the images of the training scenes, numbered from 2 as upstream."""
    scenes = list(enumerate(world.scenes("train"), 2))
    rows = [{"image_id": str(number), "caption": describe(scene)} for number, scene in scenes]
    mirror.add_zip(
        url_of("minigpt4/align"),
        [
            (f"{ALIGN_FOLDER}/", b""),
            (f"{ALIGN_FOLDER}/filter_cap.json", json.dumps({"annotations": rows}).encode()),
            (f"{ALIGN_FOLDER}/image/", b""),
            *((f"{ALIGN_FOLDER}/image/{number}.jpg", draw_jpeg(scene)) for number, scene in scenes),
        ],
    )


def describe(scene: Scene) -> str:
    """Several sentences: how many things, each of them, and how they are arranged."""
    number = len(scene.things)
    shapes = "one shape" if number == 1 else f"{NUMBERS[number]} shapes"
    return " ".join([f"The image shows {shapes} on a {scene.background} background.", *details(scene)])


def details(scene: Scene) -> Iterator[str]:
    """What the things are; of things that look the same, all at once."""
    things = scene.things
    if len(things) > 1 and len({thing.kind for thing in things}) == 1:
        first = things[0]
        yield f"All of them are {first.size} {first.colour} {plural(first.shape)}, {arrangement(things)}."
        return
    yield from (f"There is {sized(thing)} {placed(thing)}." for thing in things)
    for a, b in combinations(things, 2):
        if side := relation(a, b):
            yield f"{the(a).capitalize()} is {PHRASES[side]} {the(b)}."


FLICKR_FOLDER = "flickr30k-images"
SNLI_SPLITS = {"train": "train", "dev": "val", "test": "test"}
"""SNLI-VE's names of splits, and whose scenes they are about."""


def export_flickr30k(world: World, mirror: MirrorWriter) -> None:
    """The captions in Karpathy's split: for train one record a caption, else one an image."""
    rows: list[Row] = [
        {"image": image_name(scene), "caption": caption, "image_id": number}
        for number, scene in enumerate(world.scenes("train"))
        for caption in scene.captions()
    ]
    mirror.add_json(url_of("flickr30k/train"), rows)
    for split in ("val", "test"):
        rows = [{"image": image_name(scene), "caption": scene.captions()} for scene in world.scenes(split)]
        mirror.add_json(url_of(f"flickr30k/{split}"), rows)


def image_name(scene: Scene) -> str:
    """Where a picture lies below flickr30k/images."""
    return f"{FLICKR_FOLDER}/{scene.id}.jpg"


def flickr_by_request(world: World) -> Iterator[tuple[str, bytes]]:
    """(path below the cache root, JPEG) of every scene with captions: what a person puts there by hand."""
    for split in SNLI_SPLITS.values():
        yield from ((f"flickr30k/images/{image_name(scene)}", draw_jpeg(scene)) for scene in world.scenes(split))


def export_snli_ve(world: World, mirror: MirrorWriter) -> None:
    """Three sentences a scene, one of each label; a record names its image without the suffix."""
    for split, scenes in SNLI_SPLITS.items():
        pairs = [(scene, *one) for scene in world.scenes(scenes) for one in sentences(scene)]
        rows = [{"image": str(scene.id), "sentence": text, "label": label} for scene, text, label in pairs]
        mirror.add_json(url_of(f"snli_ve/{split}"), rows)


def sentences(scene: Scene) -> Iterator[tuple[str, str]]:
    """What follows from the picture, what it rules out, and what it cannot tell."""
    thing = scene.things[0]
    absent = next(colour for colour in COLOURS if not count(scene.things, thing.shape, colour))
    yield scene.captions()[0], "entailment"
    yield f"There is {article(f'{absent} {thing.shape}')} in the picture.", "contradiction"
    yield f"A child painted {the(thing)} yesterday.", "neutral"
