"""The protocol of a detector (RGB images → regions), its options, image preparation and files of class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lavis_ext.common.errors import ConfigError, UsageError
from lavis_ext.common.files import decode_json, not_there, read_errors, read_file
from lavis_ext.features.layout import PIXELS, Array
from lavis_ext.features.store import FeatureRow

Precision = Literal["float32", "float16", "bfloat16"]
GEOMETRY = 6
"""Columns that `geometry` adds behind the features."""


@dataclass
class DetectedRegions:
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

    def as_row(self, image_id: str) -> FeatureRow:
        """The regions as a row for a feature store."""
        return FeatureRow(image_id, self.features, self.boxes, PIXELS, self.height, self.width, self.arrays)


@dataclass(frozen=True)
class DetectorOptions:
    """Options of a detector; None: the detector's own published value.

    `weights` is a file (or for `hf_detector` a folder or hub name), `min_boxes` ≤ n ≤ `max_boxes` regions are kept of
    those with a confidence ≥ `conf`; `geometry` adds x1/W, y1/H, x2/W, y2/H, w/W, h/H to the features;
    `probabilities` keeps every class and attribute probability; `classes` and `attributes` are files of names
    (see `read_names`), which replace the detector's own; `nms` says whether boxes suppress each other within each class
    or over all of them; `seed` is for random weights (`tiny`).
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
        """D: how wide a row of `DetectedRegions.features` is, with the geometry if that is asked for."""

    @property
    def classes(self) -> Sequence[str]:
        """Class names; `objects_id` counts into them. Empty where none are known."""

    @property
    def attributes(self) -> Sequence[str]:
        """Attribute names; `attrs_id` counts into them. Empty where none are known."""

    @property
    def identity(self) -> dict[str, object]:
        """What decides the numbers (name, settings, SHA-256 of the weights), as JSON can hold it."""

    def detect(self, images: Sequence[Array]) -> list[DetectedRegions]:
        """Regions of images uint8 [H, W, 3] RGB, in their order; raises UsageError for an array of another form."""


def geometry(boxes: Array, height: int, width: int) -> Array:
    """x1/W, y1/H, x2/W, y2/H, w/W, h/H as float32 [n, 6] of boxes [n, 4] in pixels: Oscar's six columns."""
    scaled = np.asarray(boxes, np.float32) / np.array([width, height, width, height], np.float32)
    sides = np.stack([scaled[:, 2] - scaled[:, 0], scaled[:, 3] - scaled[:, 1]], axis=1)
    return np.concatenate([scaled, sides], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Prepared:
    """An image as the network takes it: `pixels` [1, 3, h, w] float32; `scale` (y, x): its pixels per given pixel."""

    pixels: Tensor
    scale: tuple[float, float]

    @property
    def height(self) -> int:
        """Rows of `pixels`."""
        return self.pixels.shape[2]

    @property
    def width(self) -> int:
        """Columns of `pixels`."""
        return self.pixels.shape[3]


def checked(image: Array) -> Array:
    """The image, if it is uint8 [H, W, 3] with at least one pixel; raises UsageError for everything else."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UsageError("image", f"expected uint8 [H, W, 3], got {found}", "convert it to RGB first")
    if not image.size:
        raise UsageError("image", f"has no pixels: {list(image.shape)}", "leave it out")
    return image


def prepare_caffe(image: Array, mean: Sequence[float], short: int, long: int) -> Prepared:
    """As bottom-up-attention's `_get_image_blob`: subtract the mean, then OpenCV's bilinear resize by one factor.

    The shorter side becomes `short`, unless the longer one would pass `long`.
    """
    height, width = image.shape[:2]
    scale = short / min(height, width)
    if round(scale * max(height, width)) > long:
        scale = long / max(height, width)
    pixels = resize_bilinear(_centred(image, mean), scale)
    return Prepared(pixels[None], (scale, scale))


def prepare_maskrcnn(image: Array, mean: Sequence[float], short: int, long: int) -> Prepared:
    """As maskrcnn-benchmark's `Resize` and `Normalize`: Pillow's bilinear resize of uint8, then subtract the mean.

    The shorter side becomes `short`, unless the longer one would pass `long`; the other side is rounded down.
    """
    height, width = image.shape[:2]
    size = short
    if max(height, width) / min(height, width) * size > long:
        size = max(round(long * min(height, width) / max(height, width)), 1)
    tall, wide = (int(size * height / width), size) if width < height else (size, int(size * width / height))
    if (height, width) != (tall, wide):
        image = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BILINEAR))
    return Prepared(_centred(image, mean)[None], (tall / height, wide / width))


def _centred(image: Array, mean: Sequence[float]) -> Tensor:
    """uint8 [H, W, 3] RGB → float32 [3, H, W] BGR less the mean."""
    pixels = torch.from_numpy(image[:, :, ::-1].astype(np.float32)).permute(2, 0, 1)
    return pixels - torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)


def resize_bilinear(pixels: Tensor, scale: float) -> Tensor:
    """[C, H, W] resized by `scale` as OpenCV's `INTER_LINEAR` with `fx` and `fy`: no smoothing, edges repeated.

    The size is rounded; positions follow the factor itself, not the quotient of the rounded sizes.
    """
    for axis in (1, 2):
        size = pixels.shape[axis]
        at = (torch.arange(max(round(size * scale), 1), dtype=torch.float64) + 0.5) / scale - 0.5
        low = at.floor().long().clamp(0, size - 1)
        high = (low + 1).clamp(max=size - 1)
        share = (at - low).clamp(0, 1).to(pixels.dtype).view((-1, 1) if axis == 1 else (-1,))
        pixels = pixels.index_select(axis, low) * (1 - share) + pixels.index_select(axis, high) * share
    return pixels


def read_names(path: Path | None, kind: str, count: int) -> tuple[str, ...]:
    """The names in a file, in the order of the ids that a detector gives; none without a file.

    `.txt`: one a line, of several separated by commas the first (bottom-up-attention's `objects_vocab.txt`). `.json`: a
    list, or a dict name → number from 1 under `<kind>_to_idx` (scene_graph_benchmark's label map; `kind` is label or
    attribute). Raises UsageError where no file is, ConfigError where it does not hold `count` names.
    """
    if path is None:
        return ()
    if not path.is_file():
        raise UsageError(str(path), *not_there(path, "file", otherwise=f"name a file with {count} {kind} names"))
    with read_errors(path):
        text = read_file(path).decode("utf-8", "replace")
    if path.suffix == ".json":
        names = _from_json(path, text, kind)
    else:
        names = [line.split(",")[0].strip().lower() for line in text.splitlines() if line.strip()]
    if len(names) != count:
        raise ConfigError(
            str(path), f"holds {len(names)} {kind} names, the detector knows {count}", "name another file"
        )
    return tuple(names)


def _from_json(path: Path, text: str, kind: str) -> list[str]:
    try:
        content: Any = decode_json(text)
    except ValueError as error:
        raise ConfigError(str(path), f"is no JSON: {error}", "name another file") from error
    if isinstance(content, dict):
        numbers = content.get(f"{kind}_to_idx")
        if isinstance(numbers, dict) and all(type(number) is int for number in numbers.values()):
            return [name for name, number in sorted(numbers.items(), key=itemgetter(1)) if number > 0]
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return content
    raise ConfigError(str(path), f"holds neither a list of names nor {kind}_to_idx", "name another file")
