"""The detectors that the published features came from: `butd_r101_c4` and `vinvl_x152_c4`, and `tiny` for tests."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from lavis_ext.common.errors import UsageError
from lavis_ext.common.files import expanded, sha256_of
from lavis_ext.common.registry import detectors
from lavis_ext.features.detectors.base import DetectorOptions
from lavis_ext.features.detectors.c4 import (
    BUTD,
    VINVL,
    Bottleneck,
    C4Detector,
    C4Network,
    C4Settings,
    FrozenNorm,
    Layers,
)
from lavis_ext.features.detectors.caffe import CAFFE, CAFFEMODEL, read_caffemodel
from lavis_ext.features.detectors.weights import (
    BUTD_SIZES,
    DETECTRON2,
    MASKRCNN,
    VINVL_SIZES,
    TensorNames,
    fit,
    read_weights,
)

BUTD_SETTINGS = C4Settings(
    BUTD, "caffe", (102.9801, 115.9465, 122.7717), sizes=BUTD_SIZES, sizes_first=True, least_side=16
)
"""bottom-up-attention's `lib/fast_rcnn/config.py`; the anchors are numbered as detectron2 numbers them."""

VINVL_SETTINGS = C4Settings(VINVL, "maskrcnn", (103.53, 116.28, 123.675), sizes=VINVL_SIZES, sizes_first=False)
"""`sgg_configs/vgattr/vinvl_x152c4.yaml` with `NMS_FILTER 1` and `IGNORE_BOX_REGRESSION`, as its README extracts."""

TINY_CLASSES = ("circle", "square", "triangle", "star", "cross", "ring")
TINY_ATTRIBUTES = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
"""The shapes and colours in the pictures of `lavis-ext demo`."""

TINY = Layers(
    blocks=(1, 1, 1, 1),
    inner=(8, 8, 16, 16),
    outer=(16, 32, 64, 2048),
    classes=len(TINY_CLASSES),
    attributes=len(TINY_ATTRIBUTES),
    anchors=6,
    rpn_channels=16,
    box_classes=len(TINY_CLASSES),
    stem=8,
    embedding=8,
    attribute_channels=16,
    stride_in_1x1=True,
    halve_res5=False,
    ceil_pool=True,
    eps=1e-5,
)
TINY_SETTINGS = replace(BUTD_SETTINGS, layers=TINY, sizes=(64, 128), short=240, long=400, before=600, after=60, pool=4)
"""The same code in small, with random weights: its regions mean nothing, but are reproducible."""


@detectors.register("butd_r101_c4")
def butd(options: DetectorOptions) -> C4Detector:
    """bottom-up-attention's Faster R-CNN: 1,600 classes, 400 attributes, 2,048 numbers a region."""
    naming = CAFFE if str(options.weights).endswith(CAFFEMODEL) else DETECTRON2
    return published("butd_r101_c4", BUTD_SETTINGS, naming, options)


@detectors.register("vinvl_x152_c4")
def vinvl(options: DetectorOptions) -> C4Detector:
    """VinVL's Faster R-CNN: 1,594 classes, 524 attributes, 2,048 numbers a region."""
    return published("vinvl_x152_c4", VINVL_SETTINGS, MASKRCNN, options)


@detectors.register("tiny")
def tiny(options: DetectorOptions) -> C4Detector:
    """The same classes in small: random weights that follow from `seed`, the demo's shapes and colours for names."""
    network = C4Network(TINY)
    draw(network, options.seed)
    detector = C4Detector("tiny", network, TINY_SETTINGS, options, weights=f"drawn from seed {options.seed}")
    detector.classes = detector.classes or TINY_CLASSES
    detector.attributes = detector.attributes or TINY_ATTRIBUTES
    return detector


def published(name: str, settings: C4Settings, naming: TensorNames, options: DetectorOptions) -> C4Detector:
    """A detector with weights from a file; raises UsageError where none is named, IntegrityError if they do not fit."""
    if options.weights is None:
        raise UsageError(name, "needs its weights", f"name the file ({naming.title}) with --weights")
    path = expanded(options.weights)
    with torch.device("meta"):
        network = C4Network(settings.layers)
    tensors = read_caffemodel(path) if naming is CAFFE else read_weights(path)
    fit(network, tensors, naming, str(path))
    return C4Detector(name, network, settings, options, weights=f"sha256:{sha256_of(path)}")


def draw(network: C4Network, seed: int) -> None:
    """Initialise at random from a seed, scaled so that activations stay near 1 and some classes have high scores."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=math.sqrt(2 / module.weight[0].numel()), generator=generator)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1, generator=generator)
        if isinstance(module, FrozenNorm):
            nn.init.uniform_(module.running_var, 0.5, 2.0, generator=generator)
            nn.init.normal_(module.bias, std=0.1, generator=generator)
        if isinstance(module, Bottleneck):
            module.bn3.weight.mul_(0.2)  # keeps the sum over many blocks near 1
    network.backbone.stem.bn1.running_var.mul_(60.0**2)  # pixels come as −128 to 127
    network.rpn.bbox_pred.weight.data.mul_(0.2)
    # features are ≥ 0: without centred weights one class would win everywhere
    for layer in (network.head.cls_score, network.attribute.attr_score):
        layer.weight.data -= layer.weight.data.mean(dim=1, keepdim=True)
