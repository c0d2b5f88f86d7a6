"""What readers of formats give: a row of one image, or a fault that names the row that is not one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lavis_ext.features.layout import NO_BOXES, Array

KNOWN_WIDTHS = range(2048, 2056)
LABELS = "labels.json"
"""The extra array that holds a row's labels as the JSON text of their file."""


@dataclass
class Row:
    """One image on its way into a store.

    `features` [n, columns] float32 or float16, `boxes` [n, 4] xyxy in `unit`, sizes in pixels (0: unknown), `arrays`
    whatever else the source has. `line` counts the rows of the source from 1; `next` is where the following one
    begins. `number_id` says that the source had the id as an integer.
    """

    image_id: str
    features: Array
    boxes: Array | None = None
    unit: int = NO_BOXES
    height: int = 0
    width: int = 0
    arrays: dict[str, Array] = field(default_factory=dict)
    line: int = 0
    next: int = 0
    number_id: bool = False


@dataclass(frozen=True)
class Fault:
    """A row that cannot be taken: its id as far as it can be read, its line, and why."""

    image_id: str
    line: int
    what: str
    next: int = 0


class BadRow(ValueError):
    """Raised while one row is parsed; becomes a Fault with its id and line."""


@dataclass(frozen=True)
class Start:
    """Where to begin in a source: the position after `line` rows; `next` 0 is the beginning."""

    line: int = 0
    next: int = 0


@dataclass(frozen=True)
class ReadOptions:
    """What a reader may need to know: side files with labels and image sizes, and how wide a feature row is."""

    labels: Path | None = None
    sizes: Path | None = None
    columns: int = 0
    keep_all: bool = False


Rows = Iterator[Row | Fault]


def shape_features(raw: bytes | memoryview, count: int, columns: int = 0) -> Array:
    """Bytes as [count, columns]: the width and the precision are inferred from the bytes of a row and checked.

    4 or 2 bytes times a known width (2048 to 2055, or `columns` where given) is float32 or float16; raises BadRow
    for every other length. Without rows the width is `columns`.
    """
    if count < 0 or (count == 0 and len(raw)):
        raise BadRow(f"{len(raw)} bytes of features for {count} boxes")
    if count == 0:
        return np.zeros((0, columns), np.float32)
    if not raw or len(raw) % count:
        raise BadRow(f"{len(raw)} bytes of features cannot be {count} boxes; truncated?")
    return np.frombuffer(raw, _dtype(len(raw) // count, columns)).reshape(count, -1)


def _dtype(row_bytes: int, columns: int) -> str:
    widths = [columns] if columns else KNOWN_WIDTHS
    for dtype, size in (("<f4", 4), ("<f2", 2)):
        if row_bytes % size == 0 and row_bytes // size in widths:
            return dtype
    told = f"{columns} columns" if columns else "any known width (2048 to 2055; name another with --width)"
    raise BadRow(f"{row_bytes} bytes a box are not {told} in float32 or float16")
