"""What a detector would report of a scene: boxes, class names with a few mistakes, and 2,054 numbers for each box.

All of it follows from the scene alone, by sums and products of single numbers: the same bits on every platform.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, lru_cache
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis_ext.demo.things import BACKGROUNDS, COLOURS, HEIGHT, SHAPES, SIZES, WIDTH, Thing
from lavis_ext.demo.world import Scene, pick

APPEARANCE = 2048
COLUMNS = APPEARANCE + 6
TRAITS = (*SHAPES, *COLOURS, *SIZES, *BACKGROUNDS)
"""What a region can look like; each has a direction of its own among the 2,048 numbers of appearance."""
DOUBT, NOISE = 0.1, 0.2
"""How much of every other trait, and of nothing in particular, is at most mixed into what a region shows."""
KEPT = 1024
Array = NDArray[Any]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Detector:
    """How many regions of background it reports beside the things, and how often it takes one class for another."""

    name: str
    spare: int
    mistakes: float


BUTD = Detector("butd", 2, 0.1)
X152C4 = Detector("x152c4", 3, 0.05)
MASK = Detector("mask", 0, 0.05)
"""The one whose class names VQA's rows carry: it knows things and no background."""


@dataclass(frozen=True)
class Detection:
    """A region: the class that the detector names, its confidence, x1 y1 x2 y2 in pixels, and what is truly there."""

    label: str
    confidence: float
    box: Box
    traits: tuple[str, ...]

    def truth(self) -> dict[str, Any]:
        """What is there, as label files hold it."""
        shape = next(trait for trait in self.traits if trait in SHAPES or trait in BACKGROUNDS)
        return {"class": shape, "rect": [float(edge) for edge in self.box]}

    def record(self) -> dict[str, Any]:
        """The object as label files hold it."""
        return {"class": self.label, "conf": self.confidence, "rect": [float(edge) for edge in self.box]}


@lru_cache(KEPT)
def detect(scene: Scene, detector: Detector) -> tuple[Detection, ...]:
    """The regions of a scene, the surest first."""
    rng = Random(f"detect/{detector.name}/{scene.id}")
    found = [of_thing(thing, rng, detector) for thing in scene.things]
    found += [of_background(scene.background, rng, detector) for _ in range(detector.spare)]
    return tuple(sorted(found, key=confidence_of, reverse=True))


def confidence_of(detection: Detection) -> float:
    """What regions are ordered by."""
    return detection.confidence


def of_thing(thing: Thing, rng: Random, detector: Detector) -> Detection:
    """A thing, its box off by a few pixels."""
    x, y, width, height = thing.box()
    off = [int(rng.random() * 7) - 3 for _ in range(4)]
    edges = (x + off[0], y + off[1], x + width + off[2], y + height + off[3])
    sure = 0.5 + 0.5 * rng.random()
    return Detection(named(thing.shape, rng, detector), round(sure, 4), inside(edges), (*thing.kind, thing.size))


def of_background(ground: str, rng: Random, detector: Detector) -> Detection:
    """A large piece of what the things lie on."""
    width, height = (int(side * (0.3 + 0.4 * rng.random())) for side in (WIDTH, HEIGHT))
    x, y = int(rng.random() * (WIDTH - width)), int(rng.random() * (HEIGHT - height))
    sure = 0.2 + 0.5 * rng.random()
    return Detection(named(ground, rng, detector), round(sure, 4), (x, y, x + width, y + height), (ground,))


def inside(edges: tuple[int, int, int, int]) -> Box:
    """The box cut to the picture."""
    x1, y1, x2, y2 = edges
    return max(0, x1), max(0, y1), min(WIDTH, x2), min(HEIGHT, y2)


def named(truth: str, rng: Random, detector: Detector) -> str:
    """The class, or now and then another one of its kind."""
    pool = list(SHAPES) if truth in SHAPES else list(BACKGROUNDS)
    wrong, other = rng.random() < detector.mistakes, pick(rng, [name for name in pool if name != truth])
    return other if wrong else truth


def tags(scene: Scene, detector: Detector, between: str = " ") -> str:
    """The class names of a scene's regions in one text."""
    return between.join(found.label for found in detect(scene, detector))


@lru_cache(KEPT)
def features(scene: Scene, detector: Detector) -> Array:
    """float32 [regions, 2054]: appearance, not negative, then x1/W y1/H x2/W y2/H w/W h/H."""
    found = detect(scene, detector)
    made = np.zeros((len(found), COLUMNS), np.float32)
    for row, detection in enumerate(found):
        made[row, :APPEARANCE] = appearance(detection, f"{detector.name}/{scene.id}/{row}")
        made[row, APPEARANCE:] = position(detection.box)
    made.flags.writeable = False
    return made


def appearance(detection: Detection, key: str) -> Array:
    """The directions of its traits, a little of all others, noise; what is below zero is cut off, as by a ReLU."""
    mixed = uniform(f"doubt/{key}", len(TRAITS), 0.0, DOUBT)
    total = uniform(f"noise/{key}", APPEARANCE, -NOISE, NOISE)
    for trait, direction, doubt in zip(TRAITS, directions(), mixed, strict=True):
        total += direction * (np.float32(1) if trait in detection.traits else doubt)
    shown: Array = np.maximum(total, np.float32(0))
    return shown


def position(box: Box) -> Array:
    """Oscar's six last columns."""
    x1, y1, x2, y2 = box
    pixels = np.array([x1, y1, x2, y2, x2 - x1, y2 - y1], np.float32)
    return pixels / np.array([WIDTH, HEIGHT] * 3, np.float32)


@cache
def directions() -> Array:
    """One row of 2,048 numbers from -1 to 1 for each trait."""
    return uniform("directions", len(TRAITS) * APPEARANCE, -1.0, 1.0).reshape(len(TRAITS), APPEARANCE)


def uniform(key: str, count: int, low: float, high: float) -> Array:
    """Numbers spread evenly over [low, high), float32, the same for the same key anywhere."""
    drawn: Array = np.frombuffer(hashlib.shake_256(key.encode()).digest(2 * count), "<u2").astype(np.float32)
    drawn *= np.float32((high - low) / 65536)
    drawn += np.float32(low)
    return drawn
