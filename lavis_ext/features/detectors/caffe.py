"""Caffe's own weights of bottom-up-attention (`resnet101_faster_rcnn_final*.caffemodel`), read without Caffe.

A caffemodel is a protocol buffer, numbers only: nothing in it can run. Field numbers: `src/caffe/proto/caffe.proto`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lavis_ext.common.errors import IntegrityError
from lavis_ext.common.files import read_errors, read_file
from lavis_ext.features.detectors.weights import RATIOS, TensorNames, Tensors, check_there

LAYER, LAYER_NAME, LAYER_BLOBS = 100, 1, 7
BLOB_DATA, BLOB_SHAPE, BLOB_DOUBLES, SHAPE_DIMS = 5, 7, 8, 1
OLD_LAYER = 2
"""Layers as they were called before 2014; the published file has none."""
CAFFEMODEL = ".caffemodel"
Field = tuple[int, int | memoryview]


class _Truncated(ValueError):
    """A message that ends before it should."""


def read_caffemodel(path: Path) -> Tensors:
    """Blobs of all layers as `<layer>.<number>`; raises IntegrityError for what is no caffemodel."""
    check_there(path)
    with read_errors(path):
        data = read_file(path)
    found: Tensors = {}
    try:
        for number, value in _fields(memoryview(data)):
            if number == OLD_LAYER:
                raise _Truncated("layers in the form of before 2014")
            if number == LAYER and isinstance(value, memoryview):
                found |= _layer(value)
    except (ValueError, struct.error, IndexError, OverflowError) as error:
        raise IntegrityError(str(path), f"is no whole caffemodel: {error}", "fetch it again") from error
    return found


def _fields(message: memoryview) -> Iterator[Field]:
    """Number and value of each field: an int, or the bytes of a string, a list or a message inside."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise _Truncated(f"a field of kind {kind}")
        if at + size > len(message):
            raise _Truncated(f"a field of {size} bytes where {len(message) - at} are left")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise _Truncated("a number of more than 64 bits")


def _layer(message: memoryview) -> Tensors:
    name, blobs = "", []
    for number, value in _fields(message):
        if number == LAYER_NAME and isinstance(value, memoryview):
            name = bytes(value).decode("utf-8", "replace")
        elif number == LAYER_BLOBS and isinstance(value, memoryview):
            blobs.append(_blob(value))
    return {f"{name}.{place}": blob for place, blob in enumerate(blobs)}


def _blob(message: memoryview) -> Tensor:
    """A blob as float32; the four sizes of old files lose their leading ones."""
    shape: list[int] | None = None
    old = [1, 1, 1, 1]
    parts = [np.zeros(0, np.float32)]
    for number, value in _fields(message):
        if isinstance(value, int):
            if 1 <= number <= 4:
                old[number - 1] = value
        elif number == BLOB_SHAPE:
            shape = list(_dims(value))
        elif number in (BLOB_DATA, BLOB_DOUBLES):
            kind = "<f4" if number == BLOB_DATA else "<f8"
            parts.append(np.frombuffer(value, kind).astype(np.float32))
    if shape is None:
        first = next((place for place, size in enumerate(old) if size != 1), 3)
        shape = old[first:]
    return torch.from_numpy(np.concatenate(parts).reshape(shape))


def _dims(message: memoryview) -> Iterator[int]:
    for number, value in _fields(message):
        if number != SHAPE_DIMS:
            continue
        if isinstance(value, int):
            yield value
            continue
        at = 0
        while at < len(value):
            size, at = _varint(value, at)
            yield size


_LAYERS = re.compile(
    r"(?P<kind>res|bn|scale)(?P<stage>[2-5])(?P<block>a|b\d*|c)_branch(?P<part>1|2a|2b|2c)\.(?P<blob>\d)"
)
_STEM = re.compile(r"(?P<kind>|bn_|scale_)conv1\.(?P<blob>\d)")
_HEADS = {
    "rpn_conv/3x3": "rpn.conv",
    "rpn_cls_score": "rpn.cls_logits",
    "rpn_bbox_pred": "rpn.bbox_pred",
    "cls_score": "head.cls_score",
    "bbox_pred": "head.bbox_pred",
    "cls_embedding": "attribute.cls_embedding",
    "fc_attr": "attribute.fc_attr",
    "attr_score": "attribute.attr_score",
}
_BLOBS = {
    "res": ("weight",),
    "": ("weight",),
    "bn": ("running_mean", "running_var", ""),
    "scale": ("weight", "bias"),
}


class CaffeNaming(TensorNames):
    """The prototxt's names: a convolution, its statistics and its scale are three layers, blocks have letters."""

    def rename(self, name: str) -> str | None:
        """The network's name; "" for the factor of a BatchNorm's sums, None for an unknown one."""
        layer, _, blob = name.rpartition(".")
        if layer in _HEADS:
            return f"{_HEADS[layer]}.{('weight', 'bias')[int(blob)]}" if blob in ("0", "1") else None
        stem, inner = _STEM.fullmatch(name), _LAYERS.fullmatch(name)
        if stem:
            return _named(stem["kind"].rstrip("_"), "backbone.stem.conv1", "backbone.stem.bn1", int(blob))
        return _block_name(inner) if inner else None


def _block_name(found: re.Match[str]) -> str | None:
    letter = found["block"]
    number = int(letter[1:]) if len(letter) > 1 else "abc".index(letter)
    place = "head.layer4" if found["stage"] == "5" else f"backbone.layer{int(found['stage']) - 1}"
    convolution, norm = "downsample.0", "downsample.1"
    if found["part"] != "1":
        part = "abc".index(found["part"][1]) + 1
        convolution, norm = f"conv{part}", f"bn{part}"
    at = f"{place}.{number}."
    return _named(found["kind"], at + convolution, at + norm, int(found["blob"]))


def _named(kind: str, convolution: str, norm: str, blob: int) -> str | None:
    blobs = _BLOBS[kind]
    if blob >= len(blobs):
        return None
    return f"{convolution if kind in ('', 'res') else norm}.{blobs[blob]}" if blobs[blob] else ""


def _from_caffe(found: Tensors, spare: Tensors) -> Tensors:
    """Caffe's layout → the network's.

    A BatchNorm keeps sums and the factor that they must be divided by. The two objectness scores of an anchor become
    their difference, whose sigmoid is their softmax. Anchors are numbered by ratio and become numbered by size. The box
    regression loses its background.
    """
    for name, factor in spare.items():
        mean = CAFFE.rename(name[:-1] + "0") or ""
        scale = 1 / factor.item() if factor.item() else 0.0
        for part in (mean, mean.replace("running_mean", "running_var")):
            if part in found:
                found[part] = found[part] * scale
    for part in ("weight", "bias"):
        for name, change in (("rpn.cls_logits", _logits), ("rpn.bbox_pred", _deltas), ("head.bbox_pred", _classes)):
            if f"{name}.{part}" in found:
                found[f"{name}.{part}"] = change(found[f"{name}.{part}"])
    return found


def _logits(scores: Tensor) -> Tensor:
    background, foreground = scores.chunk(2)
    return (foreground - background)[_by_size(len(foreground))]


def _deltas(deltas: Tensor) -> Tensor:
    anchors = deltas.reshape(-1, 4, *deltas.shape[1:])
    return anchors[_by_size(len(anchors))].flatten(0, 1)


def _classes(regression: Tensor) -> Tensor:
    return regression[4:]


def _by_size(anchors: int) -> list[int]:
    """For each anchor numbered by size, its number by ratio."""
    sizes = anchors // len(RATIOS)
    return [ratio * sizes + size for size in range(sizes) for ratio in range(len(RATIOS))]


CAFFE = CaffeNaming("bottom-up-attention's resnet101_faster_rcnn_final.caffemodel", (), (), _from_caffe)
