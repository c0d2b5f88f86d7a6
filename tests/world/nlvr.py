"""NLVR2 about pairs of scenes: sentences that hold or do not hold of both, and the images that one gets on request."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from lavis_ext.demo.coco import draw
from lavis_ext.demo.language import named, plural
from lavis_ext.demo.mirror import MirrorWriter, url_of
from lavis_ext.demo.things import COLOURS, HEIGHT, SHAPES, WIDTH, Thing
from lavis_ext.demo.world import Scene, World, pick, pick_several
from tests.world.questions import count

SENTENCES = 2
NLVR_SPLITS = {"train": "train", "dev": "val", "test1": "test"}
"""NLVR2's names of splits, and whose scenes they are about."""
LAVIS = {"train": "train", "dev": "dev", "test1": "test"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two scenes and what their files are called."""

    split: str
    number: int
    left: Scene
    right: Scene

    @property
    def name(self) -> str:
        """`dev-850-0`."""
        return f"{self.split}-{self.number}-0"

    @property
    def folder(self) -> str:
        """Where the images of the request lie; those of train in numbered folders."""
        return f"images/train/{self.directory}" if self.split == "train" else self.split

    @property
    def directory(self) -> int:
        """The number of that folder."""
        return self.number % 100

    def images(self) -> list[str]:
        """The paths of both images."""
        return [f"{self.folder}/{self.name}-img{side}.png" for side in (0, 1)]


def pairs(world: World, split: str) -> list[Pair]:
    """The scenes of a split two by two."""
    scenes = list(world.scenes(NLVR_SPLITS[split]))
    twos = zip(scenes[::2], scenes[1::2], strict=False)
    return [Pair(split, number, left, right) for number, (left, right) in enumerate(twos, 100)]


def export_nlvr(world: World, mirror: MirrorWriter) -> None:
    """The sentences in both forms; the images are not on any server (see `nlvr_by_request`)."""
    for split, name in LAVIS.items():
        told = [(pair, i, *claim) for pair in pairs(world, split) for i, claim in enumerate(some_claims(pair))]
        rows = [{"images": p.images(), "sentence": text, "label": str(truth)} for p, _, text, truth in told]
        mirror.add_json(url_of(f"nlvr/{name}"), rows)
        lines = [json.dumps(official_row(*one)) for one in told]
        mirror.add(url_of(f"nlvr/official_{name}"), "".join(f"{line}\n" for line in lines).encode())


def official_row(pair: Pair, number: int, sentence: str, truth: bool) -> Row:
    """The record of the authors."""
    where = {"directory": pair.directory} if pair.split == "train" else {}
    address = f"https://pictures.example.org/nlvr/{pair.name}"
    return {
        "sentence": sentence,
        "left_url": f"{address}-left.png",
        "right_url": f"{address}-right.png",
        "label": str(truth),
        "identifier": f"{pair.name}-{number}",
        **where,
    }


def nlvr_by_request(world: World) -> Iterator[tuple[str, bytes]]:
    """(path below the cache root, PNG of half a scene's size): what a person receives and puts there by hand."""
    for split in NLVR_SPLITS:
        for pair in pairs(world, split):
            for name, scene in zip(pair.images(), (pair.left, pair.right), strict=True):
                yield f"nlvr/images/{name}", half_size_png(scene)


def half_size_png(scene: Scene) -> bytes:
    """A scene as a PNG of 320×240."""
    buffer = io.BytesIO()
    draw(scene).resize((WIDTH // 2, HEIGHT // 2)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def some_claims(pair: Pair) -> list[tuple[str, bool]]:
    """Some sentences about a pair, each with whether it holds."""
    rng = Random(f"nlvr/{pair.left.id}/{pair.right.id}")
    return pick_several(rng, list(claims(pair, rng)), SENTENCES)


def claims(pair: Pair, rng: Random) -> Iterator[tuple[str, bool]]:
    """Sentences of a small grammar with their truth, which is worked out, not chosen."""
    left, right = pair.left.things, pair.right.things
    total = len(left) + len(right)
    number = total + int(rng.random() * 2)
    yield f"There are exactly {number} shapes in the two images together.", number == total
    more, fewer = pick(rng, (("left", "right"), ("right", "left")))
    shown = {"left": len(left), "right": len(right)}
    yield f"The {more} image has more shapes than the {fewer} image.", shown[more] > shown[fewer]
    thing = pick(rng, (*left, Thing(pick(rng, list(SHAPES)), pick(rng, list(COLOURS)), "big", 0, 0)))
    there = [count(things, thing.shape, thing.colour) > 0 for things in (left, right)]
    yield f"One image shows {named(thing)} and the other one does not.", there[0] != there[1]
    shape = pick(rng, (left[0].shape, right[0].shape))
    seen = [count(things, shape) > 0 for things in (left, right)]
    yield f"There are {plural(shape)} in both images.", all(seen)
    same = pair.left.background == pair.right.background
    yield "Both images have the same background.", same
