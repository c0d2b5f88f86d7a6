"""What is true of a scene, worked out from the boxes of its things alone, without the module that says it."""

from __future__ import annotations

import re

from lavis_ext.demo.things import COLOURS, SHAPES, Thing
from lavis_ext.demo.world import Scene

NUMBERS = {"one": 1, "two": 2, "three": 3}
NOUN = rf"(?:(big|small) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"


def directions(a: Thing, b: Thing) -> set[str]:
    """Where `a` stands from `b` by the boxes alone: wholly to one side, and overlapping on the other axis."""
    ax, ay, aw, ah = a.box()
    bx, by, bw, bh = b.box()
    found = set()
    if min(ay + ah, by + bh) > max(ay, by):
        found |= {"to the left of"} if ax + aw <= bx else {"to the right of"} if bx + bw <= ax else set()
    if min(ax + aw, bx + bw) > max(ax, bx):
        found |= {"above"} if ay + ah <= by else {"below"} if by + bh <= ay else set()
    return found


def meant(scene: Scene, size: str, colour: str, shape: str) -> list[Thing]:
    """The things that a noun phrase may point at."""
    return [t for t in scene.things if (t.colour, t.shape) == (colour, shape) and size in ("", t.size)]


def plain(caption: str) -> str:
    """A caption as the tests read it: lower case, plurals and full stop taken off."""
    text = caption.lower().rstrip(" .")
    return re.sub(r"crosses", "cross", re.sub(rf"({'|'.join(s for s in SHAPES if s != 'cross')})s\b", r"\1", text))


def answer(scene: Scene, text: str) -> str:
    """The answer to a question of the grammar, worked out from the scene without the module under test."""
    things = scene.things
    text = plain(text.rstrip("?"))
    if text == "what is the background":
        return scene.background
    if found := re.fullmatch(rf"how many (?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)}|shapes) are there", text):
        colour, shape = found.groups()
        return str(sum(colour in (None, t.colour) and shape in ("shapes", t.shape) for t in things))
    if found := re.fullmatch(r"what color is the (\w+)", text):
        return one({t.colour for t in things if t.shape == found[1]})
    if found := re.fullmatch(r"what shape is (\w+)", text):
        return one({t.shape for t in things if t.colour == found[1]})
    if found := re.fullmatch(rf"is there an? {NOUN}", text):
        return "yes" if meant(scene, *(g or "" for g in found.groups())) else "no"
    if found := re.fullmatch(rf"is the {NOUN} big", text):
        return "yes" if one({t.size for t in meant(scene, "", found[2], found[3])}) == "big" else "no"
    if found := re.fullmatch(rf"what is (.+) the {NOUN}", text):
        (anchor,) = meant(scene, "", found[3], found[4])
        return one({f"{t.colour} {t.shape}" for t in things if t is not anchor and found[1] in directions(t, anchor)})
    found = re.fullmatch(rf"is the {NOUN} (.+) the {NOUN}", text)
    assert found, text
    (a,), (b,) = meant(scene, "", found[2], found[3]), meant(scene, "", found[6], found[7])
    return "yes" if found[4] in directions(a, b) else "no"


def one(answers: set[str]) -> str:
    """The single answer; more than one would make the question ambiguous."""
    (only,) = answers
    return only


def holds(left: Scene, right: Scene, sentence: str) -> bool:
    """Whether a sentence about two scenes is true."""
    text = plain(sentence)
    if found := re.fullmatch(r"there are exactly (\d+) shapes in the two images together", text):
        return len(left.things) + len(right.things) == int(found[1])
    if found := re.fullmatch(r"the (left|right) image has more shapes than the (left|right) image", text):
        numbers = {"left": len(left.things), "right": len(right.things)}
        return numbers[found[1]] > numbers[found[2]]
    if found := re.fullmatch(rf"one image shows an? {NOUN} and the other one does not", text):
        return bool(meant(left, "", found[2], found[3])) != bool(meant(right, "", found[2], found[3]))
    if found := re.fullmatch(r"there are (\w+) in both images", text):
        return all(found[1] in {t.shape for t in scene.things} for scene in (left, right))
    assert text == "both images have the same background"
    return left.background == right.background
