"""What a detector is: RGB images in, regions of each out, whatever network stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from lavis_ext.errors import ConfigError
from lavis_ext.features.layout import PIXELS, Array
from lavis_ext.features.row import Row

Precision = Literal["float32", "float16", "bfloat16"]
GEOMETRY = 6
"""Columns that `geometry` adds behind the features."""


@dataclass
class Regions:
    """The regions of one image, the most confident first.

    `boxes` [n, 4] float32 x1, y1, x2, y2 in pixels of the image as it was given, `features` [n, D] float32,
    `objects_id` [n] int64 (background is not counted: 0 is the first class) and `objects_conf` [n] float32;
    `attrs_id` and `attrs_conf` alike, None where the detector knows no attributes. `cls_prob` [n, classes + 1] and
    `attrs` [n, attributes + 1] float32, background first, are there only where `DetectorOptions.probabilities` asks.
    """

    boxes: Array
    features: Array
    objects_id: Array
    objects_conf: Array
    height: int
    width: int
    attrs_id: Array | None = None
    attrs_conf: Array | None = None
    cls_prob: Array | None = None
    attrs: Array | None = None
    classes: Array | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def arrays(self) -> dict[str, Array]:
        """Whatever is there besides boxes and features, under the column names of the volta rows."""
        names = ("objects_id", "objects_conf", "attrs_id", "attrs_conf", "cls_prob", "attrs", "classes")
        found = {name: getattr(self, name) for name in names}
        return {name: array for name, array in found.items() if array is not None}

    def as_row(self, image_id: str) -> Row:
        """The regions as a row for a feature store."""
        return Row(image_id, self.features, self.boxes, PIXELS, self.height, self.width, self.arrays)


@dataclass(frozen=True)
class DetectorOptions:
    """What the user may say; None leaves a value to the detector's own published setting.

    `weights` is a file (or for `hf_detector` a folder or hub name), `min_boxes` ≤ n ≤ `max_boxes` regions are kept of
    those with a confidence ≥ `conf`; `geometry` adds x1/W, y1/H, x2/W, y2/H, w/W, h/H to the features;
    `probabilities` keeps every class and attribute probability; `classes` and `attributes` are files of names
    (`names.py`), which replace the detector's own; `nms` says whether boxes suppress each other within each class or
    over all of them; `seed` is for weights that are drawn (`tiny`).
    """

    weights: str | None = None
    min_boxes: int | None = None
    max_boxes: int | None = None
    conf: float | None = None
    geometry: bool = False
    probabilities: bool = False
    precision: Precision = "float32"
    device: str = "cpu"
    classes: Path | None = None
    attributes: Path | None = None
    nms: Literal["class", "agnostic"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for bounds that cannot be met."""
        low, high = self.min_boxes, self.max_boxes
        if (low is not None and low < 0) or (high is not None and high < 1):
            raise ConfigError("boxes", f"min_boxes {low} and max_boxes {high}", "at least 0 and 1")
        if low is not None and high is not None and low > high:
            raise ConfigError("boxes", f"min_boxes {low} is above max_boxes {high}", "turn them round")
        if self.conf is not None and not 0 <= self.conf <= 1:
            raise ConfigError("conf", f"{self.conf} is no confidence", "give one from 0 to 1")
        if self.precision not in ("float32", "float16", "bfloat16"):
            raise ConfigError("precision", f"'{self.precision}' is not known", "float32, float16 or bfloat16")
        if self.nms not in (None, "class", "agnostic"):
            raise ConfigError("nms", f"'{self.nms}' is not known", "class or agnostic")

    def bounds(self, least: int, most: int) -> tuple[int, int]:
        """How many regions are kept, given a detector's own bounds; raises ConfigError where one given contradicts."""
        low = least if self.min_boxes is None else self.min_boxes
        high = most if self.max_boxes is None else self.max_boxes
        if low > high:
            raise ConfigError("boxes", f"min_boxes {low} is above max_boxes {high}", "give both")
        return low, high


@runtime_checkable
class Detector(Protocol):
    """Finds regions. An image's numbers do not depend on the others in the call."""

    @property
    def name(self) -> str:
        """The registered name."""

    @property
    def columns(self) -> int:
        """D: how wide a row of `Regions.features` is, with the geometry if that is asked for."""

    @property
    def classes(self) -> Sequence[str]:
        """Class names; `objects_id` counts into them. Empty where none are known."""

    @property
    def attributes(self) -> Sequence[str]:
        """Attribute names; `attrs_id` counts into them. Empty where none are known."""

    @property
    def identity(self) -> dict[str, object]:
        """What decides the numbers (name, settings, SHA-256 of the weights), as JSON can hold it."""

    def detect(self, images: Sequence[Array]) -> list[Regions]:
        """Regions of images uint8 [H, W, 3] RGB, in their order; raises UsageError for an array of another form."""


def geometry(boxes: Array, height: int, width: int) -> Array:
    """x1/W, y1/H, x2/W, y2/H, w/W, h/H as float32 [n, 6] of boxes [n, 4] in pixels: Oscar's six columns."""
    scaled = np.asarray(boxes, np.float32) / np.array([width, height, width, height], np.float32)
    sides = np.stack([scaled[:, 2] - scaled[:, 0], scaled[:, 3] - scaled[:, 1]], axis=1)
    return np.concatenate([scaled, sides], axis=1).astype(np.float32)
