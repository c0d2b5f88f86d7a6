"""MiniGPT-4's alignment set about the scenes: a long description of each, in the archive of its authors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations

from lavis_ext.demo.addresses import url_of
from lavis_ext.demo.language import NUMBERS, PHRASES, arrangement, placed, plural, sized, the
from lavis_ext.demo.mirror import MirrorWriter
from lavis_ext.demo.scenes import picture_of
from lavis_ext.demo.things import relation
from lavis_ext.demo.world import Scene, World

FOLDER = "cc_sbu_align"


def export_minigpt4(world: World, mirror: MirrorWriter) -> None:
    """`filter_cap.json` and the images of the training scenes, numbered from 2 as upstream."""
    scenes = list(enumerate(world.scenes("train"), 2))
    rows = [{"image_id": str(number), "caption": describe(scene)} for number, scene in scenes]
    mirror.add_zip(
        url_of("minigpt4/align"),
        [
            (f"{FOLDER}/", b""),
            (f"{FOLDER}/filter_cap.json", json.dumps({"annotations": rows}).encode()),
            (f"{FOLDER}/image/", b""),
            *((f"{FOLDER}/image/{number}.jpg", picture_of(scene)) for number, scene in scenes),
        ],
    )


def describe(scene: Scene) -> str:
    """Several sentences: how many things, each of them, and how they stand."""
    number = len(scene.things)
    shapes = "one shape" if number == 1 else f"{NUMBERS[number]} shapes"
    told = [f"The image shows {shapes} on a {scene.background} background.", *details(scene)]
    return " ".join(told)


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
