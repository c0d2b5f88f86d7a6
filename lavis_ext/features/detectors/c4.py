"""Faster R-CNN on one feature map (C4) with classes and attributes, in plain PyTorch: the network and the detector.

It follows the rules of the frameworks that trained the published weights: Caffe, or maskrcnn-benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_ext.common.errors import ConfigError
from lavis_ext.features.detectors import ops
from lavis_ext.features.detectors.base import (
    GEOMETRY,
    DetectedRegions,
    DetectorOptions,
    Prepared,
    checked,
    geometry,
    prepare_caffe,
    prepare_maskrcnn,
    read_names,
)
from lavis_ext.features.layout import Array


@dataclass(frozen=True)
class Layers:
    """Sizes of the network, and conventions of the framework that trained it.

    `blocks`, `inner` and `outer` are the blocks of res2 to res5 and their channels inside and behind a bottleneck.
    `stride_in_1x1`: the first convolution of a block has the stride (Caffe's ResNet), not the second (ResNeXt).
    `halve_res5`: res5 has stride 2; else it keeps its size and dilates by 2. `ceil_pool`: the stem's pooling has no
    padding and rounds up (Caffe). `anchors` is how many anchors a cell has, `box_classes` how many classes the box
    regression knows.
    """

    blocks: Sequence[int]
    inner: Sequence[int]
    outer: Sequence[int]
    classes: int
    attributes: int
    anchors: int
    rpn_channels: int
    box_classes: int
    stem: int = 64
    groups: int = 1
    embedding: int = 256
    attribute_channels: int = 512
    stride_in_1x1: bool = False
    halve_res5: bool = True
    ceil_pool: bool = False
    eps: float = 0.0


class FrozenNorm(nn.Module):
    """Batch normalisation whose statistics and scale are fixed: x · s + (b − mean · s) with s = w / √(var + eps)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised [N, C, H, W], in place."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x.mul_(scale.to(x.dtype).view(1, -1, 1, 1)).add_(shift.to(x.dtype).view(1, -1, 1, 1))


def _convolution(inner: int, outer: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = (kernel // 2) * dilation
    return nn.Conv2d(inner, outer, kernel, stride, padding, dilation, groups, bias=False)


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolutions with a residual connection, projected where the channels change."""

    def __init__(self, channels: int, inner: int, outer: int, stride: int, dilation: int, layers: Layers) -> None:
        super().__init__()
        first, second = (stride, 1) if layers.stride_in_1x1 else (1, stride)
        self.conv1 = _convolution(channels, inner, 1, first)
        self.bn1 = FrozenNorm(inner, layers.eps)
        self.conv2 = _convolution(inner, inner, 3, second, dilation, layers.groups)
        self.bn2 = FrozenNorm(inner, layers.eps)
        self.conv3 = _convolution(inner, outer, 1)
        self.bn3 = FrozenNorm(outer, layers.eps)
        self.downsample = None
        if channels != outer:
            self.downsample = nn.Sequential(_convolution(channels, outer, 1, stride), FrozenNorm(outer, layers.eps))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, outer, H / stride, W / stride]."""
        short = x if self.downsample is None else self.downsample(x)
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        return F.relu_(self.bn3(self.conv3(x)).add_(short))


def _stage(number: int, layers: Layers, stride: int, dilation: int = 1) -> nn.Sequential:
    """Stage `number` of the residual stages (0 is res2), its first block with the stride."""
    channels = layers.stem if number == 0 else layers.outer[number - 1]
    inner, outer = layers.inner[number], layers.outer[number]
    blocks = [Bottleneck(channels, inner, outer, stride, dilation, layers)]
    blocks += [Bottleneck(outer, inner, outer, 1, dilation, layers) for _ in range(layers.blocks[number] - 1)]
    return nn.Sequential(*blocks)


class Stem(nn.Module):
    """7 × 7 convolution with stride 2 and 3 × 3 maximum with stride 2."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.ceil_pool = layers.ceil_pool
        self.conv1 = _convolution(3, layers.stem, 7, 2)
        self.bn1 = FrozenNorm(layers.stem, layers.eps)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] → [N, C, H / 4, W / 4]."""
        x = F.relu_(self.bn1(self.conv1(x)))
        if self.ceil_pool:
            return F.max_pool2d(x, 3, 2, padding=0, ceil_mode=True)
        return F.max_pool2d(x, 3, 2, padding=1)


class Backbone(nn.Module):
    """Stem, res2, res3 and res4, under the names that maskrcnn-benchmark has for them."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.stem = Stem(layers)
        self.layer1 = _stage(0, layers, 1)
        self.layer2 = _stage(1, layers, 2)
        self.layer3 = _stage(2, layers, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Image [1, 3, H, W] → map [1, C, H / 16, W / 16]."""
        mapped: Tensor = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return mapped


class ProposalHead(nn.Module):
    """Objectness and box deltas of every anchor."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.conv = nn.Conv2d(layers.outer[2], layers.rpn_channels, 3, padding=1)
        self.cls_logits = nn.Conv2d(layers.rpn_channels, layers.anchors, 1)
        self.bbox_pred = nn.Conv2d(layers.rpn_channels, layers.anchors * 4, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[1, C, H, W] → logits float32 [H · W · A] and deltas [H · W · A, 4], anchors the fastest to change."""
        x = F.relu_(self.conv(features))
        logits = self.cls_logits(x)[0].permute(1, 2, 0).reshape(-1)
        deltas = self.bbox_pred(x)[0].permute(1, 2, 0).reshape(-1, 4)
        return logits.float(), deltas.float()


class AttributeHead(nn.Module):
    """Attributes from a region's features and the embedding of its class."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.cls_embedding = nn.Embedding(layers.classes + 1, layers.embedding)
        self.fc_attr = nn.Linear(layers.outer[3] + layers.embedding, layers.attribute_channels)
        self.attr_score = nn.Linear(layers.attribute_channels, layers.attributes + 1)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Features [n, D] and labels int64 [n] (0 is background) → logits float32 [n, attributes + 1]."""
        x = torch.cat([features, self.cls_embedding(labels).to(features.dtype)], dim=1)
        logits: Tensor = self.attr_score(F.relu_(self.fc_attr(x)))
        return logits.float()


class RegionHead(nn.Module):
    """res5 over each pooled region, its mean, and the class."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        stride, dilation = (2, 1) if layers.halve_res5 else (1, 2)
        self.layer4 = _stage(3, layers, stride, dilation)
        self.cls_score = nn.Linear(layers.outer[3], layers.classes + 1)
        # loaded and checked with the weights; the published features do not use it
        self.bbox_pred = nn.Linear(layers.outer[3], layers.box_classes * 4)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled [n, C, s, s] → features float32 [n, D] and class logits float32 [n, classes + 1], background first."""
        features = self.layer4(pooled).float().mean(dim=(2, 3))
        logits: Tensor = self.cls_score(features)
        return features, logits.float()


class C4Network(nn.Module):
    """The parts of the network; `C4Detector` runs what is between them."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.layers = layers
        self.backbone = Backbone(layers)
        self.rpn = ProposalHead(layers)
        self.head = RegionHead(layers)
        self.attribute = AttributeHead(layers)


BUTD = Layers(
    blocks=(3, 4, 23, 3),
    inner=(64, 128, 256, 512),
    outer=(256, 512, 1024, 2048),
    classes=1600,
    attributes=400,
    anchors=12,
    rpn_channels=512,
    box_classes=1600,
    stride_in_1x1=True,
    halve_res5=False,
    ceil_pool=True,
    eps=1e-5,
)
"""ResNet-101: bottom-up-attention's `models/vg/ResNet-101/faster_rcnn_end2end_final/test.prototxt`."""

VINVL = Layers(
    blocks=(3, 8, 36, 3),
    inner=(256, 512, 1024, 2048),
    outer=(256, 512, 1024, 2048),
    groups=32,
    classes=1594,
    attributes=524,
    anchors=15,
    rpn_channels=1024,
    box_classes=1595,
)
"""ResNeXt-152 32×8d: scene_graph_benchmark's `sgg_configs/vgattr/vinvl_x152c4.yaml`; its norm has no eps."""


CHUNK = 64
"""Regions in one pass of res5, which bounds the memory."""


@dataclass(frozen=True)
class C4Settings:
    """What runs around the network, with the published values of one framework.

    `frame`, the framework, is Caffe (RoIPool, OpenCV's resize, deltas without a bound, regions chosen in the image's
    own pixels, the class is the most likely one) or maskrcnn-benchmark (RoIAlign, Pillow's resize, bounded deltas,
    regions chosen in the resized image, the class is the best one that survived suppression). `mean` is BGR,
    `least_side` counts pixels of the image as it was given.
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
        self, name: str, network: C4Network, settings: C4Settings, options: DetectorOptions, weights: str
    ) -> None:
        self.name, self.settings, self.options = name, settings, options
        self.least, self.most = options.bounds(settings.min_boxes, settings.max_boxes)
        self.conf = settings.conf if options.conf is None else options.conf
        self.device = usable(options.device)
        self.network = network.to(self.device).eval()
        self.classes: Sequence[str] = read_names(options.classes, "label", settings.layers.classes)
        self.attributes: Sequence[str] = read_names(options.attributes, "attribute", settings.layers.attributes)
        cells = ops.cell_anchors(settings.stride, settings.sizes, settings.ratios, settings.sizes_first)
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

    def detect(self, images: Sequence[Array]) -> list[DetectedRegions]:
        """Regions of images uint8 [H, W, 3] RGB; raises UsageError for an array of another form."""
        dtype = getattr(torch, self.options.precision)
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return [self._one(checked(image)) for image in images]

    def _one(self, image: Array) -> DetectedRegions:
        prepare = prepare_caffe if self.settings.frame == "caffe" else prepare_maskrcnn
        prepared = prepare(image, self.settings.mean, self.settings.short, self.settings.long)
        mapped = self.network.backbone(filled(prepared.pixels, self.settings.stride).to(self.device))
        proposals = self.propose(mapped, prepared)
        features, logits = self.describe(mapped.float()[0], proposals)
        back = proposals.new_tensor([1 / prepared.scale[1], 1 / prepared.scale[0]]).repeat(2)
        shown = proposals * back
        kept, labels, confidence = self.select(shown if self.settings.frame == "caffe" else proposals, logits)
        regions = DetectedRegions(
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
        anchors = ops.grid_anchors(self._cells, settings.stride, mapped.shape[2], mapped.shape[3])
        end, clamp = (0.0, math.inf) if settings.frame == "caffe" else (-1.0, ops.SIDE_CLAMP)
        moved = ops.clip(ops.decode(deltas, anchors, end, clamp), prepared.height, prepared.width)
        large = ops.large_enough(moved, settings.least_side * prepared.scale[0])
        moved, logits = moved[large], logits[large]
        first = ops.ranked(logits)[: settings.before]
        moved, logits = moved[first], logits[first]
        return moved[ops.suppress(moved, logits, settings.rpn_nms, settings.after)]

    def describe(self, mapped: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Features [n, D] and class logits [n, classes + 1] of proposals on a map [C, H, W]."""
        settings = self.settings
        pool: Callable[..., Tensor] = ops.roi_pool if settings.frame == "caffe" else ops.roi_align
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
            kept = ops.suppress(boxes, likely.values, self.settings.agnostic_nms)
            kept = kept[likely.values[kept] > self.conf * 0.01]
            kept = kept[ops.choose(likely.values[kept], self.conf, self.least, self.most)]
            return kept, likely.indices[kept], likely.values[kept]
        best, labels = ops.best_of_survivors(boxes, scores, self.settings.class_nms)
        kept = ops.choose(best, self.conf, self.least, self.most)
        if self.settings.frame == "caffe":
            return kept, likely.indices[kept], likely.values[kept]
        kept = kept[best[kept] > 0]
        return kept, labels[kept], best[kept]

    def _finish(self, regions: DetectedRegions, features: Tensor, logits: Tensor, labels: Tensor) -> DetectedRegions:
        """Add attributes, and what the options ask for: probabilities, geometry."""
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
    """[1, 3, h, w], padded with zeros below and to the right to sides of `least`: the feature map needs one cell."""
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
