"""A detector without a network: its numbers follow from the pixels, so that tests can tell whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lavis_ext.common.registry import detectors
from lavis_ext.features.detectors import DetectedRegions, DetectorOptions

CLASSES, ATTRIBUTES = 5, 4


class FakeDetector:
    """Gives `min_boxes` regions; the first feature is the mean of the picture, the second the number of the region."""

    name = "fake"
    columns = 2048
    classes: Sequence[str] = ()
    attributes: Sequence[str] = ()

    def __init__(self, options: DetectorOptions | None = None) -> None:
        self.options = options or DetectorOptions()
        self.calls: list[int] = []

    @property
    def identity(self) -> dict[str, object]:
        """What decides the numbers."""
        return {"detector": self.name, "boxes": self.options.min_boxes, "conf": self.options.conf}

    def detect(self, images: Sequence[np.ndarray]) -> list[DetectedRegions]:
        """Regions of each picture."""
        self.calls.append(len(images))
        return [self._one(image) for image in images]

    def _one(self, image: np.ndarray) -> DetectedRegions:
        n, (height, width) = self.options.min_boxes or 3, image.shape[:2]
        features = np.zeros((n, self.columns), np.float32)
        features[:, 0], features[:, 1] = image.mean(), np.arange(n)
        boxes = np.tile(np.array([0, 0, width, height], np.float32), (n, 1))
        zeros, ones = np.zeros(n, np.int64), np.ones(n, np.float32)
        found = DetectedRegions(boxes, features, zeros, ones, height, width, zeros, ones)
        if self.options.probabilities:
            found.cls_prob = found.classes = np.full((n, CLASSES + 1), 0.5, np.float32)
            found.attrs = np.full((n, ATTRIBUTES + 1), 0.25, np.float32)
        return found


detectors.register("fake_regions")(FakeDetector)


def draw(folder: Path, names: Sequence[str]) -> Path:
    """Small pictures, each of its own grey (40 + its number in the list)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (24 + number, 16), (40 + number,) * 3).save(folder / f"{name}.png")
    return folder


def coco_names(split: str, count: int, first: int = 1) -> list[str]:
    """`COCO_val2014_000000000001` and on, every seventh number."""
    return [f"COCO_{split}_{first + 7 * i:012d}" for i in range(count)]
