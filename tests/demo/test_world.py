"""The world: the same for a seed, well laid out, and every sentence about it true by geometry worked out anew here."""

from __future__ import annotations

import re
from itertools import combinations, permutations

import pytest

from lavis_ext.common.errors import UsageError
from lavis_ext.demo.things import COLOURS, HEIGHT, SHAPES, WIDTH, Thing, relation
from lavis_ext.demo.world import ID_PRIME, SPLITS, Scene, World
from tests.support.geometry import NOUN, NUMBERS, directions, meant, plain

WORLD = World(seed=3, train=250, val=30, test=30, hidden=5)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return list(WORLD)


def test_the_same_seed_makes_the_same_world_and_another_seed_another() -> None:
    assert list(World(seed=3, train=20, val=3, test=3, hidden=0)) == list(
        World(seed=3, train=20, val=3, test=3, hidden=0)
    )
    assert [s.things for s in World(seed=3).scenes("train")][:20] != [s.things for s in World(seed=4).scenes("train")][
        :20
    ]


def test_a_fixed_scene_stays_what_it_is() -> None:
    """Guards against a change of Python or of ours that would make other pictures from the same seed."""
    scene = World(seed=7).scene("train", 0)
    assert (scene.id, scene.background, scene.things) == (
        151_175,
        "stone",
        (Thing("triangle", "yellow", "big", 316, 241),),
    )
    assert scene.captions()[:2] == ["a big yellow triangle on stone", "A yellow triangle in the middle ."]


def test_a_smaller_world_begins_a_larger_one() -> None:
    small, large = World(seed=9, train=5), World(seed=9, train=50)
    assert list(small.scenes("train")) == list(large.scenes("train"))[:5]


def test_ids_are_unique_and_in_range(scenes: list[Scene]) -> None:
    ids = [scene.id for scene in scenes]
    assert len(set(ids)) == len(ids) == len(WORLD) == 315
    assert all(1 <= i <= ID_PRIME for i in ids)
    assert {scene.split for scene in scenes} == set(SPLITS)


@pytest.mark.parametrize("size", [-1, 100_001])
def test_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=r"world\.val"):
        World(val=size)


def test_things_stay_inside_the_picture_and_apart(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert 1 <= len(scene.things) <= 3
        for thing in scene.things:
            x, y, w, h = thing.box()
            assert x >= 0 and y >= 0 and x + w <= WIDTH and y + h <= HEIGHT
        for a, b in combinations(scene.things, 2):
            (ax, ay, aw, ah), (bx, by, bw, bh) = a.box(), b.box()
            assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay


def test_all_kinds_of_scene_occur(scenes: list[Scene]) -> None:
    numbers = [len(scene.things) for scene in scenes]
    alike = [len({t.kind for t in scene.things}) == 1 for scene in scenes]
    assert {1, 2, 3} == set(numbers)
    assert {(n, a) for n, a in zip(numbers, alike, strict=True)} == {
        (1, True),
        (2, True),
        (2, False),
        (3, True),
        (3, False),
    }
    assert {t.colour for s in scenes for t in s.things} == set(COLOURS)
    assert {t.shape for s in scenes for t in s.things} == set(SHAPES)


def test_relations_agree_with_the_boxes(scenes: list[Scene]) -> None:
    words = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
    for scene in scenes:
        known = [(a, relation(a, b), b) for a, b in permutations(scene.things, 2) if relation(a, b)]
        assert all(words[side] in directions(a, b) for a, side, b in known)
        assert len(known) >= 2 * (len(scene.things) - 1)


def test_a_diagonal_is_no_relation() -> None:
    a, b = Thing("circle", "red", "small", 100, 100), Thing("star", "blue", "small", 300, 300)
    assert relation(a, b) is None
    assert relation(a, a) is None


def test_every_caption_names_only_what_is_there(scenes: list[Scene]) -> None:
    for scene in scenes:
        captions = scene.captions()
        assert len(captions) == 5 == len(set(map(plain, captions)))
        for caption in map(plain, captions):
            nouns = re.findall(NOUN, caption)
            assert nouns and all(meant(scene, *noun) for noun in nouns), (caption, scene)
            for ground in re.findall(r"on (paper|wood|stone)$", caption):
                assert ground == scene.background


def test_every_relation_in_a_caption_holds(scenes: list[Scene]) -> None:
    seen = 0
    clause = re.compile(rf"{NOUN} (to the left of|to the right of|above|below) (?:a|an|the) {NOUN}")
    for scene in scenes:
        for caption in map(plain, scene.captions()):
            for *a, phrase, b_size, b_colour, b_shape in clause.findall(caption):
                (first,), (second,) = meant(scene, *a), meant(scene, b_size, b_colour, b_shape)
                assert phrase in directions(first, second), (caption, scene)
                seen += 1
    assert seen > 300


def test_places_betweens_and_arrangements_hold(scenes: list[Scene]) -> None:
    for scene in scenes:
        xs, ys = [t.x for t in scene.things], [t.y for t in scene.things]
        text = " / ".join(map(plain, scene.captions()))
        for place in re.findall(r"on the left|in the middle|on the right", text):
            assert {"on the left": xs[0] < 200, "in the middle": 260 < xs[0] < 380, "on the right": xs[0] > 440}[place]
        if "side by side" in text or "in a row" in text:
            assert max(ys) - min(ys) < 60 < min(abs(a - b) for a, b in combinations(xs, 2))
        if "one above the other" in text:
            assert max(xs) - min(xs) < 60 < max(ys) - min(ys)
        for *b, a_size, a_colour, a_shape, c_size, c_colour, c_shape in re.findall(
            rf"{NOUN} between (?:a|an) {NOUN} and (?:a|an) {NOUN}", text
        ):
            (middle,), (left,) = meant(scene, *b), meant(scene, a_size, a_colour, a_shape)
            (right,) = meant(scene, c_size, c_colour, c_shape)
            assert left.x < middle.x < right.x


def test_numbers_in_captions_hold(scenes: list[Scene]) -> None:
    for scene in scenes:
        for caption in map(plain, scene.captions()):
            number = re.search(rf"\b(two|three) {NOUN}", caption)
            if number:
                assert (
                    NUMBERS[number[1]] == len(meant(scene, number[2] or "", number[3], number[4])) == len(scene.things)
                )
            if "three shapes" in caption:
                assert len(scene.things) == 3


def test_captions_are_typed_in_several_ways(scenes: list[Scene]) -> None:
    captions = [c for scene in scenes for c in scene.captions()]
    assert {c[0].isupper() for c in captions} == {c.endswith(".") for c in captions} == {True, False}
    words = {w for c in captions for w in re.findall(r"[a-z]+", c.lower())}
    assert 40 <= len(words) <= 70


def test_boxes_are_tight_around_the_centres(scenes: list[Scene]) -> None:
    for thing in (thing for scene in scenes[:40] for thing in scene.things):
        x, _, w, h = thing.box()
        assert x <= thing.x - 0.2 * w and x + w >= thing.x + 0.2 * w and w <= thing.width and h <= thing.width
