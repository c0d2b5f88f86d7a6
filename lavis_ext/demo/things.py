"""The things of the small world: coloured shapes at a place, their outlines, and the relation of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH, HEIGHT = 640, 480
COLOURS = {
    "red": (208, 34, 38),
    "orange": (244, 126, 24),
    "yellow": (250, 214, 38),
    "green": (38, 146, 60),
    "blue": (36, 88, 206),
    "purple": (122, 56, 168),
    "pink": (246, 132, 192),
    "black": (30, 30, 34),
}
SIZES = {"small": 122, "big": 180}
BACKGROUNDS = ("paper", "wood", "stone")
Relation = Literal["left", "right", "above", "below"]
CLEARLY = 3
"""How many times one distance must exceed the other before a person would name the direction without doubt."""

Point = tuple[float, float]


def regular(corners: int, turn: float = 0.0) -> list[Point]:
    """The corners of a regular polygon on the unit circle, the first one at the top, turned by `turn` radians."""
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    return [(math.sin(a), -math.cos(a)) for a in angles]


def star() -> list[Point]:
    """A five-pointed star whose inner corners lie at 0.42 of its radius."""
    outer, inner = regular(5), regular(5, math.pi / 5)
    return [p for tip, dent in zip(outer, inner, strict=True) for p in (tip, (0.42 * dent[0], 0.42 * dent[1]))]


def cross() -> list[Point]:
    """A plus sign with arms of one third of its width."""
    a, b = 1 / 3, 1.0
    return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]


SHAPES: dict[str, list[Point]] = {
    "circle": regular(72),
    "square": [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
    "triangle": [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)],
    "star": star(),
    "cross": cross(),
    "ring": regular(72),
}
HOLES: dict[str, list[Point]] = {"ring": [(0.55 * x, 0.55 * y) for x, y in regular(72)]}


@dataclass(frozen=True)
class Thing:
    """One coloured shape; `x`, `y` are its centre and `width` the side of the square it is drawn into, in pixels."""

    shape: str
    colour: str
    size: str
    x: int
    y: int

    @property
    def width(self) -> int:
        """Pixels."""
        return SIZES[self.size]

    @property
    def kind(self) -> tuple[str, str]:
        """(colour, shape)."""
        return self.colour, self.shape

    def outline(self, points: Sequence[Point] | None = None) -> list[Point]:
        """Corners in pixels of the whole picture; `points`: another curve of the unit square, such as a hole."""
        half = self.width / 2
        return [(self.x + half * px, self.y + half * py) for px, py in points or SHAPES[self.shape]]

    def box(self) -> tuple[int, int, int, int]:
        """The tight bounding box as (x, y, width, height) in pixels, COCO's order."""
        xs, ys = zip(*self.outline(), strict=True)
        left, top = round(min(xs)), round(min(ys))
        return left, top, round(max(xs)) - left, round(max(ys)) - top


def relation(a: Thing, b: Thing) -> Relation | None:
    """Where `a` is as seen from `b`; None where one could argue (neither axis exceeds the other threefold)."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= CLEARLY * abs(dy) and dx:
        return "left" if dx < 0 else "right"
    if abs(dy) >= CLEARLY * abs(dx) and dy:
        return "above" if dy < 0 else "below"
    return None
