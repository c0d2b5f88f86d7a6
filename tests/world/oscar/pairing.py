"""NLVR2 in Oscar's form: sentences about two images with the tags of each, and one file of features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lavis_ext.demo.world import Scene, World
from tests.world.nlvr import SPLITS, Pair, pairs, some_claims
from tests.world.oscar.forms import Members, as_json, as_tensor, as_torch
from tests.world.regions import Detector, features, tags

SIDES = {"left": 0, "right": 1}
Row = dict[str, Any]


def pair_texts(world: World, detector: Detector) -> Members:
    """The files of rows; every second pair counts as balanced."""
    told = {
        split: [(pair, row) for pair in pairs(world, split) for row in pair_rows(pair, detector)] for split in SPLITS
    }
    rows = {split: [row for _, row in found] for split, found in told.items()}
    yield "nlvr2_train.json", as_json(rows["train"])
    for split in ("dev", "test1"):
        yield f"nlvr2_{split}.json", as_json(rows[split])
        for name, rest in (("balanced", 0), ("unbalanced", 1)):
            yield f"nlvr2_{name}_{split}.json", as_json([row for p, row in told[split] if p.number % 2 == rest])
    yield "nlvr2_dev_test1.json", as_json(rows["dev"] + rows["test1"])


def pair_rows(pair: Pair, detector: Detector) -> Iterator[Row]:
    """Sentence, tags and image of either side, and whether it holds: 1 or 0."""
    for sentence, truth in some_claims(pair):
        yield {
            "q": sentence,
            "o": {side: tags(scene_of(pair, side), detector) for side in SIDES},
            "img_id": {side: image_of(pair, side) for side in SIDES},
            "label": int(truth),
        }


def scene_of(pair: Pair, side: str) -> Scene:
    """The scene on one side."""
    return pair.left if side == "left" else pair.right


def image_of(pair: Pair, side: str) -> str:
    """`nlvr2_dev-850-0-img0`."""
    return f"nlvr2_{pair.name}-img{SIDES[side]}"


def pair_images(world: World) -> Iterator[tuple[str, Scene]]:
    """The id and the scene of every image of every split."""
    for split in SPLITS:
        for pair in pairs(world, split):
            yield from ((image_of(pair, side), scene_of(pair, side)) for side in SIDES)


def pair_features(world: World, detector: Detector) -> Members:
    """The features of all splits by the image's name."""
    content = {name: as_tensor(features(scene, detector)) for name, scene in pair_images(world)}
    yield "nlvr2_img_frcnn_feats.pt", as_torch(content)
