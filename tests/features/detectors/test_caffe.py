"""Caffe's own file, written here byte by byte as protocol buffers are, and read into the same network."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from lavis_ext.common.errors import IntegrityError, UsageError
from lavis_ext.features.detectors import DetectorOptions, build_detector
from lavis_ext.features.detectors.c4 import BUTD, C4Network
from lavis_ext.features.detectors.caffe import CAFFE, read_caffemodel
from lavis_ext.features.detectors.ops import cell_anchors
from lavis_ext.features.detectors.published import TINY
from lavis_ext.features.detectors.weights import fit
from tests.features.detectors.small import drawn

FACTOR = 999.982
Layers = dict[str, list[np.ndarray]]


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array: np.ndarray, old: bool = False) -> bytes:
    """BlobProto: data = 5, shape = 7 with packed sizes, or the four sizes of old files in 1 to 4."""
    data = field(5, array.astype("<f4").tobytes())
    if not old:
        return field(7, field(1, b"".join(varint(size) for size in array.shape))) + data
    sizes = [1] * (4 - array.ndim) + list(array.shape)
    return b"".join(varint(n << 3) + varint(size) for n, size in enumerate(sizes, 1)) + data


def caffemodel(layers: Layers, old: bool = False) -> bytes:
    """NetParameter: name = 1, layers = 100 with name = 1, type = 2, loss_weight = 5, blobs = 7."""
    out = field(1, b"ResNet-101")
    for name, blobs in layers.items():
        weight = varint(5 << 3 | 5) + struct.pack("<f", 1.0)
        content = field(1, name.encode()) + field(2, b"Some") + weight
        out += field(100, content + b"".join(field(7, blob(array, old)) for array in blobs))
    return out + field(100, field(1, b"loss_cls") + field(2, b"SoftmaxWithLoss"))


def norm_layers(name: str, ours: dict[str, np.ndarray], at: str) -> Layers:
    sums = [ours[f"{at}.running_mean"] * FACTOR, ours[f"{at}.running_var"] * FACTOR, np.float32([FACTOR])]
    return {f"bn{name}": sums, f"scale{name}": [ours[f"{at}.weight"], ours[f"{at}.bias"]]}


def block_letter(stage: int, block: int) -> str:
    """a, b, c in res2 and res5; a, b1, b2, … in res3 and res4."""
    return "abc"[block] if stage in (2, 5) else f"b{block}" if block else "a"


def as_caffe(network: C4Network) -> Layers:
    """The layers of `test.prototxt`: scores of background and foreground, anchors by ratio, background first."""
    ours = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    layers: Layers = {"conv1": [ours["backbone.stem.conv1.weight"]]}
    layers |= norm_layers("_conv1", ours, "backbone.stem.bn1")
    for stage, count in enumerate(network.layers.blocks, 2):
        place = "head.layer4" if stage == 5 else f"backbone.layer{stage - 1}"
        for block in range(count):
            name, at = f"{stage}{block_letter(stage, block)}_branch", f"{place}.{block}"
            for letter, part in zip("abc", "123", strict=True):
                layers[f"res{name}2{letter}"] = [ours[f"{at}.conv{part}.weight"]]
                layers |= norm_layers(f"{name}2{letter}", ours, f"{at}.bn{part}")
            if block == 0:
                layers[f"res{name}1"] = [ours[f"{at}.downsample.0.weight"]]
                layers |= norm_layers(f"{name}1", ours, f"{at}.downsample.1")
    layers["rpn_conv/3x3"] = [ours["rpn.conv.weight"], ours["rpn.conv.bias"]]
    layers["rpn_cls_score"], layers["rpn_bbox_pred"] = [], []
    anchors = network.layers.anchors
    by_ratio = np.arange(anchors).reshape(anchors // 3, 3).T.ravel()  # our number of each of Caffe's anchors
    for part in ("weight", "bias"):
        foreground = ours[f"rpn.cls_logits.{part}"][by_ratio]
        background = np.random.default_rng(0).normal(size=foreground.shape).astype(np.float32)
        layers["rpn_cls_score"].append(np.concatenate([background, foreground + background]))
        deltas = ours[f"rpn.bbox_pred.{part}"].reshape(anchors, 4, -1)[by_ratio]
        layers["rpn_bbox_pred"].append(deltas.reshape(ours[f"rpn.bbox_pred.{part}"].shape))
        regression = ours[f"head.bbox_pred.{part}"]
        layers.setdefault("bbox_pred", []).append(np.concatenate([np.zeros_like(regression[:4]), regression]))
    layers["cls_score"] = [ours["head.cls_score.weight"], ours["head.cls_score.bias"]]
    layers["cls_embedding"] = [ours["attribute.cls_embedding.weight"]]
    for name in ("fc_attr", "attr_score"):
        layers[name] = [ours[f"attribute.{name}.weight"], ours[f"attribute.{name}.bias"]]
    return layers


def loaded(path: Path) -> C4Network:
    with torch.device("meta"):
        network = C4Network(TINY)
    fit(network, read_caffemodel(path), CAFFE, str(path))
    return network


@pytest.mark.parametrize("old", [False, True])
def test_a_caffemodel_becomes_the_same_network(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "x.caffemodel"
    path.write_bytes(caffemodel(as_caffe(drawn(TINY)), old))
    expected = drawn(TINY).state_dict()
    for name, tensor in loaded(path).state_dict().items():
        assert torch.allclose(tensor, expected[name], rtol=1e-5, atol=1e-5), name


def test_anchors_keep_their_scores_and_deltas(tmp_path: Path) -> None:
    """An anchor of Caffe's order has the same box, score and deltas in ours."""
    by_ratio, by_size = (cell_anchors(16, (64, 128), (0.5, 1.0, 2.0), flag) for flag in (False, True))
    layers = as_caffe(drawn(TINY))
    (tmp_path / "x.caffemodel").write_bytes(caffemodel(layers))
    network = loaded(tmp_path / "x.caffemodel")
    background, foreground = np.split(layers["rpn_cls_score"][1], 2)
    for number, anchor in enumerate(by_ratio):
        ours = int((by_size == anchor).all(dim=1).nonzero())
        assert network.rpn.cls_logits.bias[ours].item() == pytest.approx(
            foreground[number] - background[number], abs=1e-5
        )
        deltas = layers["rpn_bbox_pred"][1][4 * number : 4 * number + 4]
        assert np.array_equal(network.rpn.bbox_pred.bias[4 * ours : 4 * ours + 4].detach().numpy(), deltas)


def test_every_layer_of_the_prototxt_has_its_place() -> None:
    with torch.device("meta"):
        network = C4Network(BUTD)
    blocks = [(stage, block) for stage, count in enumerate(BUTD.blocks, 2) for block in range(count)]
    names = ["conv1.0", "bn_conv1.0", "bn_conv1.1", "bn_conv1.2", "scale_conv1.0", "scale_conv1.1"]
    for stage, block in blocks:
        for branch in ("2a", "2b", "2c", *(["1"] if block == 0 else [])):
            layer = f"{stage}{block_letter(stage, block)}_branch{branch}"
            names += [f"res{layer}.0", *(f"bn{layer}.{i}" for i in range(3)), *(f"scale{layer}.{i}" for i in range(2))]
    for layer in ("rpn_conv/3x3", "rpn_cls_score", "rpn_bbox_pred", "cls_score", "bbox_pred", "fc_attr", "attr_score"):
        names += [f"{layer}.0", f"{layer}.1"]
    names.append("cls_embedding.0")
    renamed = [CAFFE.rename(name) for name in names]
    assert sorted(name for name in renamed if name) == sorted(network.state_dict())
    assert renamed.count("") == 104  # one factor a norm
    assert "res4b22_branch2c.0" in names and CAFFE.rename("res4b22_branch2c.0") == "backbone.layer3.22.conv3.weight"
    for unknown in ("res6a_branch1.0", "conv1.1", "cls_score.2", "rel_score.0", "scale2a_branch1.2", ""):
        assert CAFFE.rename(unknown) is None


def test_what_does_not_belong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.caffemodel"
    layers = as_caffe(drawn(TINY))
    path.write_bytes(caffemodel(layers | {"rel_score": [np.zeros((2, 2))]}))
    with pytest.raises(IntegrityError, match=r"1 tensors unknown: rel_score\.0; expected bottom-up-attention's"):
        loaded(path)
    del layers["fc_attr"]
    path.write_bytes(caffemodel(layers))
    with pytest.raises(
        IntegrityError, match=r"2 tensors missing: attribute\.fc_attr\.bias, attribute\.fc_attr\.weight"
    ):
        loaded(path)


@pytest.mark.parametrize("cut", [1, 7, 100, 5000, -1, -40])
def test_a_truncated_file_is_told(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.caffemodel"
    path.write_bytes(caffemodel(as_caffe(drawn(TINY)))[:cut])
    with pytest.raises(IntegrityError, match=r"x\.caffemodel"):
        loaded(path)


@pytest.mark.parametrize(
    "content",
    [
        field(100, field(7, field(7, field(1, b"\x02\x03")) + field(5, b"\0" * 20))),  # 5 numbers for 2 × 3
        field(100, field(7, field(5, b"\0" * 7))),  # no whole number
        field(2, b"old layer"),
        b"\xff" * 30,
        b"\x0b",
        b"some text that is no protocol buffer at all",
    ],
)
def test_what_is_no_caffemodel_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.caffemodel"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="is no whole caffemodel"):
        read_caffemodel(path)


def test_the_detector_tells_the_file_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "resnet101_faster_rcnn_final_iter_320000.caffemodel"
    with pytest.raises(UsageError, match="no such file"):
        build_detector("butd_r101_c4", DetectorOptions(weights=str(path)))
    path.write_bytes(caffemodel(as_caffe(drawn(TINY))))
    with pytest.raises(IntegrityError, match=r"missing: backbone\.layer1\.1"):
        build_detector("butd_r101_c4", DetectorOptions(weights=str(path)))
