"""Faster R-CNN on one feature map (C4) with classes and attributes, as a network of plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Layers:
    """How large the network is, and the conventions of the frame that trained it.

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
    """1 × 1, 3 × 3 and 1 × 1 convolutions with a short cut around them, which is projected where channels change."""

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
        self.bbox_pred = nn.Linear(layers.outer[3], layers.box_classes * 4)  # read, checked and not used

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled [n, C, s, s] → features float32 [n, D] and class logits float32 [n, classes + 1], background first."""
        features = self.layer4(pooled).float().mean(dim=(2, 3))
        logits: Tensor = self.cls_score(features)
        return features, logits.float()


class C4Network(nn.Module):
    """The whole network; what runs between its parts is in `c4.py`."""

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
