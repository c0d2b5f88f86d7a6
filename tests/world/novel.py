"""nocaps about the scenes: ten captions each, a domain, and images one by one at addresses that the lists name."""

from __future__ import annotations

from typing import Any

from lavis_ext.demo.addresses import url_of
from lavis_ext.demo.language import NUMBERS, named, plural
from lavis_ext.demo.mirror import MirrorWriter
from lavis_ext.demo.scenes import picture_of
from lavis_ext.demo.things import HEIGHT, WIDTH
from lavis_ext.demo.world import Scene, World

HOST = "https://s3.amazonaws.com/nocaps"
NOVEL = frozenset({"ring", "cross"})
"""The shapes that stand for objects which COCO does not know."""
Row = dict[str, Any]


def export_nocaps(world: World, mirror: MirrorWriter) -> None:
    """The authors' lists and LAVIS'; captions and domains of test are not published."""
    for split, artifact in (("val", "val_captions"), ("test", "test_info")):
        scenes = list(world.scenes(split))
        images = [image_row(scene, number) for number, scene in enumerate(scenes)]
        for scene, image in zip(scenes, images, strict=True):
            mirror.add(image["coco_url"], picture_of(scene))
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
        "coco_url": f"{HOST}/{scene.split}/{key}.jpg",
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
