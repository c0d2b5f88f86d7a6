"""Flickr30k and SNLI-VE about the scenes: captions and sentences from servers, images that one gets on request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lavis_ext.demo.addresses import url_of
from lavis_ext.demo.language import article, the
from lavis_ext.demo.mirror import MirrorWriter
from lavis_ext.demo.scenes import picture_of
from lavis_ext.demo.things import COLOURS
from lavis_ext.demo.world import Scene, World
from tests.world.answers import count

FOLDER = "flickr30k-images"
SPLITS = {"train": "train", "dev": "val", "test": "test"}
"""SNLI-VE's names of splits, and whose scenes they are about."""
Row = dict[str, Any]


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
    return f"{FOLDER}/{scene.id}.jpg"


def images_by_request(world: World) -> Iterator[tuple[str, bytes]]:
    """(path below the cache root, JPEG) of every scene with captions: what a person puts there by hand."""
    for split in SPLITS.values():
        yield from ((f"flickr30k/images/{image_name(scene)}", picture_of(scene)) for scene in world.scenes(split))


def export_snli_ve(world: World, mirror: MirrorWriter) -> None:
    """Three sentences a scene, one of each label; a record names its image without the suffix."""
    for split, scenes in SPLITS.items():
        told = [(scene, *one) for scene in world.scenes(scenes) for one in sentences(scene)]
        rows = [{"image": str(scene.id), "sentence": text, "label": label} for scene, text, label in told]
        mirror.add_json(url_of(f"snli_ve/{split}"), rows)


def sentences(scene: Scene) -> Iterator[tuple[str, str]]:
    """What follows from the picture, what it rules out, and what it cannot tell."""
    thing = scene.things[0]
    absent = next(colour for colour in COLOURS if not count(scene.things, thing.shape, colour))
    yield scene.captions()[0], "entailment"
    yield f"There is {article(f'{absent} {thing.shape}')} in the picture.", "contradiction"
    yield f"A child painted {the(thing)} yesterday.", "neutral"
