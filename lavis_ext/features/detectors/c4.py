"""The detectors on one feature map: image → proposals → regions, by the rules of the frames that trained them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.errors import ConfigError
from lavis_ext.features.detectors import boxes as box
from lavis_ext.features.detectors.base import GEOMETRY, DetectorOptions, Regions, geometry
from lavis_ext.features.detectors.images import Prepared, checked, prepare_caffe, prepare_maskrcnn
from lavis_ext.features.detectors.names import read_names
from lavis_ext.features.detectors.network import C4Network, Layers
from lavis_ext.features.detectors.pooling import roi_align, roi_pool
from lavis_ext.features.layout import Array

CHUNK = 64
"""Regions that pass through res5 at a time; they bound the memory."""


@dataclass(frozen=True)
class Settings:
    """What runs around the network, with the published values of one frame.

    `frame`: Caffe's (RoIPool, OpenCV's resize, deltas without a bound, regions chosen in the image's own pixels, the
    class is the most likely one) or maskrcnn-benchmark's (RoIAlign, Pillow's resize, bounded deltas, regions chosen in
    the resized image, the class is the best one that survived suppression). `mean` is BGR, `least_side` counts pixels
    of the image as it was given.
    """

    layers: Layers
    frame: Literal["caffe", "maskrcnn"]
    mean: tuple[float, float, float]
    sizes: tuple[int, ...]
    sizes_first: bool
    least_side: int = 0
    short: int = 600
    long: int = 1000
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    before: int = 6000
    after: int = 300
    rpn_nms: float = 0.7
    class_nms: float = 0.3
    agnostic_nms: float = 0.5
    pool: int = 14
    stride: int = 16
    conf: float = 0.2
    min_boxes: int = 10
    max_boxes: int = 100


class C4Detector:
    """A C4 network with its settings.

    Images are taken one at a time and never padded, so that an image's numbers are the same whatever else is in the
    call.
    """

    def __init__(
        self, name: str, network: C4Network, settings: Settings, options: DetectorOptions, weights: str
    ) -> None:
        self.name, self.settings, self.options = name, settings, options
        self.least, self.most = options.bounds(settings.min_boxes, settings.max_boxes)
        self.conf = settings.conf if options.conf is None else options.conf
        self.device = usable(options.device)
        self.network = network.to(self.device).eval()
        self.classes: Sequence[str] = read_names(options.classes, "label", settings.layers.classes)
        self.attributes: Sequence[str] = read_names(options.attributes, "attribute", settings.layers.attributes)
        cells = box.cell_anchors(settings.stride, settings.sizes, settings.ratios, settings.sizes_first)
        self._cells = cells.to(self.device)
        self._weights = weights

    @property
    def columns(self) -> int:
        """Width of a feature row."""
        return self.settings.layers.outer[3] + (GEOMETRY if self.options.geometry else 0)

    @property
    def identity(self) -> dict[str, object]:
        """Name, settings and weights, as JSON can hold them."""
        used: dict[str, object] = {"conf": self.conf, "min_boxes": self.least, "max_boxes": self.most}
        used |= {"nms": self.options.nms or "class", "precision": self.options.precision}
        used |= {"geometry": self.options.geometry}
        return {"detector": self.name, "weights": self._weights, "settings": asdict(self.settings) | used}

    def detect(self, images: Sequence[Array]) -> list[Regions]:
        """Regions of images uint8 [H, W, 3] RGB; raises UsageError for an array of another form."""
        dtype = getattr(torch, self.options.precision)
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return [self._one(checked(image)) for image in images]

    def _one(self, image: Array) -> Regions:
        prepare = prepare_caffe if self.settings.frame == "caffe" else prepare_maskrcnn
        prepared = prepare(image, self.settings.mean, self.settings.short, self.settings.long)
        mapped = self.network.backbone(filled(prepared.pixels, self.settings.stride).to(self.device))
        proposals = self.propose(mapped, prepared)
        features, logits = self.describe(mapped.float()[0], proposals)
        back = proposals.new_tensor([1 / prepared.scale[1], 1 / prepared.scale[0]]).repeat(2)
        shown = proposals * back
        kept, labels, confidence = self.select(shown if self.settings.frame == "caffe" else proposals, logits)
        regions = Regions(
            boxes=shown[kept].cpu().numpy(),
            features=features[kept].cpu().numpy(),
            objects_id=labels.cpu().numpy(),
            objects_conf=confidence.cpu().numpy(),
            height=image.shape[0],
            width=image.shape[1],
        )
        return self._finish(regions, features[kept], logits[kept], labels)

    def propose(self, mapped: Tensor, prepared: Prepared) -> Tensor:
        """Proposals [n, 4] in pixels of the resized image, n ≤ `after`, the most objectlike first."""
        settings = self.settings
        logits, deltas = self.network.rpn(mapped)
        anchors = box.grid_anchors(self._cells, settings.stride, mapped.shape[2], mapped.shape[3])
        end, clamp = (0.0, math.inf) if settings.frame == "caffe" else (-1.0, box.SIDE_CLAMP)
        moved = box.clip(box.decode(deltas, anchors, end, clamp), prepared.height, prepared.width)
        large = box.large_enough(moved, settings.least_side * prepared.scale[0])
        moved, logits = moved[large], logits[large]
        first = box.ranked(logits)[: settings.before]
        moved, logits = moved[first], logits[first]
        return moved[box.suppress(moved, logits, settings.rpn_nms, settings.after)]

    def describe(self, mapped: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Features [n, D] and class logits [n, classes + 1] of proposals on a map [C, H, W]."""
        settings = self.settings
        pool: Callable[..., Tensor] = roi_pool if settings.frame == "caffe" else roi_align
        found = []
        for at in range(0, max(len(proposals), 1), CHUNK):
            with torch.autocast(self.device.type, enabled=False):
                pooled = pool(mapped, proposals[at : at + CHUNK], settings.pool, 1 / settings.stride)
            found.append(self.network.head(pooled))
        return torch.cat([features for features, _ in found]), torch.cat([logits for _, logits in found])

    def select(self, boxes: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which regions are kept, int64 [m], their classes (background not counted) and confidences."""
        scores = logits.softmax(dim=1)[:, 1:]
        likely = scores.max(dim=1)
        if self.options.nms == "agnostic":
            kept = box.suppress(boxes, likely.values, self.settings.agnostic_nms)
            kept = kept[likely.values[kept] > self.conf * 0.01]
            kept = kept[box.choose(likely.values[kept], self.conf, self.least, self.most)]
            return kept, likely.indices[kept], likely.values[kept]
        best, labels = box.best_of_survivors(boxes, scores, self.settings.class_nms)
        kept = box.choose(best, self.conf, self.least, self.most)
        if self.settings.frame == "caffe":
            return kept, likely.indices[kept], likely.values[kept]
        kept = kept[best[kept] > 0]
        return kept, labels[kept], best[kept]

    def _finish(self, regions: Regions, features: Tensor, logits: Tensor, labels: Tensor) -> Regions:
        """Attributes, and what the options ask for besides."""
        named = logits.argmax(dim=1) if self.settings.frame == "caffe" else labels + 1
        attributes = self.network.attribute(features, named).softmax(dim=1)
        best = attributes[:, 1:].max(dim=1)
        regions.attrs_id, regions.attrs_conf = best.indices.cpu().numpy(), best.values.cpu().numpy()
        if self.options.probabilities:
            regions.cls_prob = logits.softmax(dim=1).cpu().numpy()
            regions.attrs = attributes.cpu().numpy()
            regions.classes = regions.cls_prob
        if self.options.geometry:
            place = geometry(regions.boxes, regions.height, regions.width)
            regions.features = np.concatenate([regions.features, place], axis=1)
        return regions


def filled(pixels: Tensor, least: int) -> Tensor:
    """[1, 3, h, w] with zeros below and to the right where a side is shorter than `least`: a map needs one cell."""
    height, width = pixels.shape[2:]
    if min(height, width) >= least:
        return pixels
    return F.pad(pixels, (0, max(least - width, 0), 0, max(least - height, 0)))


def usable(name: str) -> torch.device:
    """The device of that name; raises ConfigError where this machine has none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError("device", f"'{name}' is no device", "cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", f"'{name}' is not there", "use cpu, or install a torch built for this device")
    return device
