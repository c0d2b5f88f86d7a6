"""Region features of scenes: the same bits anywhere, boxes in their last columns, and enough in them to learn from."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from lavis_ext.demo.things import BACKGROUNDS, COLOURS, HEIGHT, SHAPES, WIDTH
from lavis_ext.demo.world import World
from tests.world.regions import BUTD, MASK, TRAITS, X152C4, Detector, detect, features, tags, uniform

WORLD = World(seed=3, train=160, val=60, test=0, hidden=0)
SCENES = list(WORLD)


@pytest.mark.parametrize("detector", [BUTD, X152C4, MASK])
def test_each_thing_has_a_region_and_a_few_are_background(detector: Detector) -> None:
    for scene in SCENES:
        found = detect(scene, detector)
        grounds = [one for one in found if one.traits == (scene.background,)]
        assert len(found) == len(scene.things) + detector.spare and len(grounds) == detector.spare
        assert [one.confidence for one in found] == sorted((one.confidence for one in found), reverse=True)
        kinds = sorted((t.shape, t.colour, t.size) for t in scene.things)
        assert kinds == sorted((one.traits[1], one.traits[0], one.traits[2]) for one in found if len(one.traits) == 3)
        assert tags(scene, detector, ";").split(";") == [one.label for one in found]


def test_boxes_are_near_the_things_and_within_the_picture() -> None:
    for scene in SCENES:
        boxes = [(t.kind, t.box()) for t in scene.things]
        for one in detect(scene, BUTD):
            x1, y1, x2, y2 = one.box
            assert 0 <= x1 < x2 <= WIDTH and 0 <= y1 < y2 <= HEIGHT
            if len(one.traits) == 3:
                nearest = min(
                    max(abs(x1 - x), abs(y1 - y), abs(x2 - x - w), abs(y2 - y - h))
                    for kind, (x, y, w, h) in boxes
                    if kind == one.traits[:2]
                )
                assert nearest <= 3


def test_the_last_six_columns_are_the_box() -> None:
    for scene in SCENES[:40]:
        made = features(scene, BUTD)
        assert made.shape == (len(detect(scene, BUTD)), 2054) and made.dtype == np.float32
        assert made[:, :2048].min() >= 0 and (made[:, :2048] > 0).mean() > 0.3
        for row, one in zip(made.tolist(), detect(scene, BUTD), strict=True):
            x1, y1, x2, y2 = one.box
            expected = [x1 / 640, y1 / 480, x2 / 640, y2 / 480, (x2 - x1) / 640, (y2 - y1) / 480]
            assert row[2048:] == pytest.approx(expected, abs=1e-6)


def test_class_names_are_now_and_then_wrong_and_then_of_the_same_kind() -> None:
    found = [one for scene in SCENES for one in detect(scene, BUTD)]
    wrong = [one for one in found if one.label not in one.traits]
    assert 0.05 < len(wrong) / len(found) < 0.16
    assert all((one.label in SHAPES) == (len(one.traits) == 3) for one in wrong)
    assert {one.label for one in found} == {*SHAPES, *BACKGROUNDS}


def test_what_a_region_shows_can_be_learned() -> None:
    """Least squares from 160 scenes tell shape and colour of other scenes' things."""
    rows, truths = [], []
    for scene in SCENES:
        for row, one in zip(features(scene, X152C4), detect(scene, X152C4), strict=True):
            rows.append(row[:2048])
            truths.append([trait in one.traits for trait in TRAITS])
    cut = sum(len(detect(scene, X152C4)) for scene in SCENES[:160])
    table, truth = np.stack(rows).astype(np.float64), np.array(truths, float)
    known = table[:cut]
    weights = known.T @ np.linalg.solve(known @ known.T + 100 * np.eye(cut), truth[:cut])
    guess, there = table[cut:] @ weights, truth[cut:]
    things = there[:, TRAITS.index("red") : TRAITS.index("red") + len(COLOURS)].sum(1) == 1
    for names in (tuple(SHAPES), tuple(COLOURS)):
        at = [TRAITS.index(name) for name in names]
        right = guess[things][:, at].argmax(1) == there[things][:, at].argmax(1)
        assert right.mean() > 0.9


def test_regions_of_the_same_traits_differ_by_a_part_of_what_another_trait_changes() -> None:
    rows = [
        (one.traits, row[:2048])
        for scene in SCENES[:100]
        for row, one in zip(features(scene, BUTD), detect(scene, BUTD), strict=True)
        if len(one.traits) == 3
    ]
    ways = [(a == b, float(np.linalg.norm(u - v))) for (a, u), (b, v) in combinations(rows, 2)]
    same, other = ([way for alike, way in ways if alike is kind] for kind in (True, False))
    assert len(same) > 100 and min(same) > 0.2 * min(other) and max(same) < 0.5 * min(other)


def test_detectors_differ() -> None:
    assert not np.array_equal(features(SCENES[0], BUTD)[:1], features(SCENES[0], X152C4)[:1])


def test_numbers_are_spread_evenly_and_the_same_for_the_same_key() -> None:
    drawn = uniform("a", 40_000, -2.0, 3.0)
    assert drawn.min() >= -2 and drawn.max() < 3 and abs(float(drawn.mean()) - 0.5) < 0.02
    assert np.array_equal(drawn, uniform("a", 40_000, -2.0, 3.0)) and not np.array_equal(
        drawn, uniform("b", 40_000, -2, 3)
    )


def test_the_same_bits_in_another_process() -> None:
    code = (
        "import hashlib; from tests.world.regions import BUTD, features; from lavis_ext.demo.world import World;"
        "print(hashlib.sha256(features(World(seed=3).scene('train', 5), BUTD).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(features(WORLD.scene("train", 5), BUTD).tobytes()).hexdigest()
