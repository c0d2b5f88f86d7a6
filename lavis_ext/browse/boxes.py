"""Boxes on a picture, with label and confidence: of region features, and of rows that say where things are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

EDGE = 760
"""The longer edge of a drawn picture: a page shows it at two thirds, where `FONT` is still read."""
FONT = 20
NAMED = 12
"""Regions whose label stands on the picture, the most certain ones; all are in the line below it."""
COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#b91c1c", "#0e7490")
BOX_KEYS = ("boxes", "bboxes", "bbox")
NAME_KEYS = ("labels", "categories", "category", "names", "name", "classes", "class", "label")
MAX_BOXES = 500


@dataclass(frozen=True)
class Region:
    """A box (x1, y1, x2, y2 as shares of the picture), what is seen there, and how certain that is (None: not said)."""

    box: tuple[float, float, float, float]
    name: str = ""
    conf: float | None = None

    @property
    def label(self) -> str:
        """`dog 0.98`."""
        return f"{self.name} {self.conf:.2f}".strip() if self.conf is not None else self.name


def boxes_of(row: Mapping[str, Any]) -> list[tuple[tuple[float, ...], str]]:
    """The boxes of a row, x, y, width and height in pixels as COCO has them, and their names.

    They stand under one of `BOX_KEYS` in the row or in its `objects` (one record of lists, or a list of records).
    """
    inner = row.get("objects", row.get("annotations"))
    holders = [one for one in (inner if isinstance(inner, list) else [inner]) if isinstance(one, Mapping)]
    found: list[tuple[tuple[float, ...], str]] = []
    for holder in (row, *holders):
        boxes: list[Any] = next((holder[key] for key in BOX_KEYS if isinstance(holder.get(key), list)), [])
        names: Any = next((holder[key] for key in NAME_KEYS if holder.get(key) is not None), [])
        boxes = [boxes] if _is_box(boxes) else boxes
        names = names if isinstance(names, list) else [names] * len(boxes)
        for number, box in enumerate(boxes[:MAX_BOXES]):
            if _is_box(box):
                found.append((tuple(map(float, box)), str(names[number]) if number < len(names) else ""))
    return found[:MAX_BOXES]


def _is_box(value: Any) -> bool:
    plain = isinstance(value, list) and len(value) == 4 and all(type(one) in (int, float) for one in value)
    return plain and bool(np.isfinite(np.array(value, float)).all())


def draw_boxes(pixels: Any, boxes: Sequence[tuple[tuple[float, ...], str]]) -> Any:
    """A picture, uint8 [H,W,3], with the boxes of its row; its longer edge is `EDGE`."""
    height, width = pixels.shape[:2]
    size = np.array([width, height, width, height], float)
    regions = []
    for (x, y, w, h), name in boxes:
        x1, y1, x2, y2 = (np.array([x, y, x + w, y + h]) / size).clip(0, 1)
        regions.append(Region((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), name))
    return drawn(Image.fromarray(pixels), regions)


def drawn(picture: Image.Image, regions: Sequence[Region]) -> Any:
    """A picture with regions, uint8 [H,W,3]; its longer edge is `EDGE`.

    The first ones have their label on it, none over another.
    """
    ratio = EDGE / max(picture.size)
    canvas = picture.resize((max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT)
    scale = (canvas.width - 1, canvas.height - 1) * 2
    named = [number for number, one in enumerate(regions) if one.name][:NAMED]
    for number in reversed(range(len(regions))):  # the most certain ones last, so that none lies over them
        corners = [share * edge for share, edge in zip(regions[number].box, scale, strict=True)]
        draw.rectangle(corners, outline=COLOURS[number % len(COLOURS)], width=3 if number in named or not named else 1)
    taken: list[tuple[float, float, float, float]] = []
    for number in named:
        x, y = regions[number].box[0] * scale[0], regions[number].box[1] * scale[1]
        _write(draw, font, (x, y), regions[number].label, COLOURS[number % len(COLOURS)], canvas.size, taken)
    return np.asarray(canvas)


def _write(
    draw: ImageDraw.ImageDraw,
    font: Any,
    corner: tuple[float, float],
    text: str,
    colour: str,
    size: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
) -> None:
    """A label above the corner of its box, or below one that stands there already; within the picture."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 8, bottom - top + 8
    x = max(0.0, min(corner[0], size[0] - width))
    places = [corner[1] - height, *(corner[1] + step * height for step in range(5))]
    for y in (max(0.0, min(place, size[1] - height)) for place in places):
        spot = (x, y, x + width, y + height)
        if all(spot[2] <= a or c <= spot[0] or spot[3] <= b or d <= spot[1] for a, b, c, d in taken):
            taken.append(spot)
            draw.rectangle(spot, fill=colour)
            draw.text((x + 4 - left, y + 4 - top), text, fill="white", font=font)
            return
