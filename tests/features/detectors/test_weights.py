"""Published files read under their own names; what is unknown, missing, unsafe or of another shape is named."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lavis_ext.common.errors import ConfigError, IntegrityError, UnsafeError, UsageError
from lavis_ext.features.detectors import DetectorOptions, build_detector
from lavis_ext.features.detectors.c4 import BUTD, VINVL, C4Network, Layers
from lavis_ext.features.detectors.ops import cell_anchors
from lavis_ext.features.detectors.published import TINY
from lavis_ext.features.detectors.weights import DETECTRON2, MASKRCNN, TensorNames, fit, read_weights
from tests.features.detectors.small import VINVL_LAYERS, as_detectron2, as_maskrcnn, detectron2_tensors, drawn


def empty(layers: object) -> C4Network:
    with torch.device("meta"):
        return C4Network(layers)


def same(one: C4Network, other: C4Network) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def pkl(tmp_path: Path) -> Path:
    path = tmp_path / "faster_rcnn_from_caffe_attr.pkl"
    path.write_bytes(pickle.dumps({"model": as_detectron2(drawn(TINY)), "__author__": "somebody"}, protocol=2))
    return path


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    path = tmp_path / "vinvl_vg_x152c4.pth"
    torch.save({"model": OrderedDict(as_maskrcnn(drawn(VINVL_LAYERS))), "iteration": 9}, path)
    return path


def test_the_port_of_caffes_file_is_read(pkl: Path) -> None:
    network = empty(TINY)
    fit(network, read_weights(pkl), DETECTRON2, str(pkl))
    assert same(network, drawn(TINY))


def test_background_comes_first_though_it_was_last(pkl: Path) -> None:
    theirs = pickle.loads(pkl.read_bytes())["model"]["roi_heads.box_predictor.cls_score.weight"]
    network = empty(TINY)
    fit(network, read_weights(pkl), DETECTRON2, str(pkl))
    assert np.array_equal(network.head.cls_score.weight[0].detach().numpy(), theirs[-1])
    assert np.array_equal(network.head.cls_score.weight[1].detach().numpy(), theirs[0])


def test_maskrcnns_file_is_read(pth: Path) -> None:
    network = empty(VINVL_LAYERS)
    fit(network, read_weights(pth), MASKRCNN, str(pth))
    assert same(network, drawn(VINVL_LAYERS))


@pytest.mark.parametrize("protocol", [2, 4])
def test_an_ordered_dict_is_data_too(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(OrderedDict(model=OrderedDict(a=np.ones((2, 3), np.float32))), protocol))
    assert read_weights(path)["a"].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_our_own_names_are_read(tmp_path: Path) -> None:
    save_file(drawn(TINY).state_dict(), tmp_path / "own.safetensors")
    network = empty(TINY)
    fit(network, read_weights(tmp_path / "own.safetensors"), DETECTRON2, "own")
    assert same(network, drawn(TINY))


def test_what_is_unknown_is_named(pkl: Path) -> None:
    tensors = read_weights(pkl)
    tensors["roi_heads.mask_head.deconv.weight"] = torch.zeros(1)
    with pytest.raises(IntegrityError, match=r"1 tensors unknown: roi_heads.mask_head.deconv.weight"):
        fit(empty(TINY), tensors, DETECTRON2, "x.pkl")


def test_what_is_missing_is_named(pkl: Path) -> None:
    tensors = read_weights(pkl)
    del tensors["roi_heads.box_predictor.fc_attr.bias"]
    with pytest.raises(IntegrityError, match=r"x\.pkl: 1 tensors missing: attribute.fc_attr.bias"):
        fit(empty(TINY), tensors, DETECTRON2, "x.pkl")


def test_another_shape_is_named(pth: Path) -> None:
    tensors = read_weights(pth)
    tensors["rpn.head.cls_logits.bias"] = torch.zeros(12)
    with pytest.raises(IntegrityError, match=r"rpn.cls_logits.bias \[12\] instead of \[15\]"):
        fit(empty(VINVL_LAYERS), tensors, MASKRCNN, "x.pth")


def test_a_file_without_attributes_names_what_it_lacks(pkl: Path) -> None:
    tensors = {name: t for name, t in read_weights(pkl).items() if "attr" not in name and "embedding" not in name}
    with pytest.raises(IntegrityError, match=r"5 tensors missing: attribute\.attr_score\.bias"):
        fit(empty(TINY), tensors, DETECTRON2, "faster_rcnn_from_caffe.pkl")


def test_the_file_of_the_other_detector_is_refused(pth: Path, pkl: Path) -> None:
    with pytest.raises(IntegrityError, match=r"expected py-bottom-up-attention's"):
        fit(empty(TINY), read_weights(pth), DETECTRON2, str(pth))
    with pytest.raises(IntegrityError, match=r"expected scene_graph_benchmark's"):
        fit(empty(VINVL_LAYERS), read_weights(pkl), MASKRCNN, str(pkl))


def test_an_attribute_head_with_a_res5_of_its_own_is_refused(pth: Path) -> None:
    tensors = read_weights(pth)
    tensors["attribute.feature_extractor.head.layer4.0.conv1.weight"] += 1
    with pytest.raises(IntegrityError, match=r"a res5 of its own: attribute\.feature_extractor\.head\.layer4\.0"):
        fit(empty(VINVL_LAYERS), tensors, MASKRCNN, "x.pth")


def test_saved_anchors_must_be_the_ones_used(pth: Path) -> None:
    tensors = read_weights(pth)
    tensors["rpn.anchor_generator.cell_anchors.0"] = cell_anchors(16, (32, 64, 128, 256, 512), (0.5, 1.0, 2.0))
    fit(empty(VINVL_LAYERS), tensors, MASKRCNN, "x.pth")
    tensors["rpn.anchor_generator.cell_anchors.0"] = cell_anchors(16, (16, 64, 128, 256, 512), (0.5, 1.0, 2.0))
    with pytest.raises(IntegrityError, match="other anchors"):
        fit(empty(VINVL_LAYERS), tensors, MASKRCNN, "x.pth")


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("executed",)


@pytest.mark.fault("D08")
@pytest.mark.parametrize("name", ["x.pkl", "x.pth"])
def test_a_pickle_of_more_than_data_is_not_run(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    content = {"model": {"a": np.zeros(2, np.float32), "b": Bomb()}}
    if name == "x.pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UnsafeError) as caught:
        read_weights(path)
    assert caught.value.exit_code == 10
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["x.pkl", "x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04broken"])
def test_damage_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((IntegrityError, UnsafeError)):  # text can look like a pickle that asks for something
        read_weights(tmp_path / name)


def test_a_file_of_no_tensors_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": {"a": 1}}))
    with pytest.raises(IntegrityError, match="holds no tensors"):
        read_weights(tmp_path / "x.pkl")
    (tmp_path / "y.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(IntegrityError, match="expected a dict, got a list"):
        read_weights(tmp_path / "y.pkl")


@pytest.mark.parametrize("name", ["butd_r101_c4", "vinvl_x152_c4"])
def test_weights_must_be_named_and_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{name}: needs its weights; name the file"):
        build_detector(name)
    with pytest.raises(UsageError, match="no such file"):
        build_detector(name, DetectorOptions(weights=str(tmp_path / "absent.pkl")))


def test_small_weights_do_not_pass_for_the_published(pkl: Path) -> None:
    with pytest.raises(IntegrityError, match=r"missing: backbone\.layer1\.1"):
        build_detector("butd_r101_c4", DetectorOptions(weights=str(pkl)))


@pytest.mark.parametrize(
    ("layers", "naming", "theirs", "tensors", "spare"),
    [(BUTD, DETECTRON2, detectron2_tensors, 535, 1), (VINVL, MASKRCNN, as_maskrcnn, 790, 3 * 15 + 5)],
    ids=["butd", "vinvl"],
)
def test_every_published_name_at_full_size_has_its_place(
    layers: Layers, naming: TensorNames, theirs: object, tensors: int, spare: int
) -> None:
    """A norm has 4 tensors beside its convolution, the proposals 6, class and boxes 4, attributes 5."""
    network = empty(layers)
    ours = network.state_dict()
    assert len(ours) == tensors == (1 + 3 * sum(layers.blocks) + 4) * 5 + 6 + 4 + 5
    published = {name.removeprefix("module."): tensor for name, tensor in theirs(network).items()}
    renamed = {name: naming.rename(name) for name in published}
    assert sum(target == "" for target in renamed.values()) == spare
    places = {target: published[name].shape for name, target in renamed.items() if target}
    assert places == {name: tensor.shape for name, tensor in ours.items()}
    assert naming.rename("roi_heads.nothing.of.the.kind") is None


def test_the_options_say_what_cannot_be_meant() -> None:
    for wrong in ({"min_boxes": 9, "max_boxes": 3}, {"max_boxes": 0}, {"conf": 1.5}, {"precision": "int8"}):
        with pytest.raises(ConfigError):
            DetectorOptions(**wrong)
    with pytest.raises(ConfigError, match="min_boxes 200 is above max_boxes 100"):
        build_detector("tiny", DetectorOptions(min_boxes=200))
    with pytest.raises(ConfigError, match="is no device"):
        build_detector("tiny", DetectorOptions(device="abacus"))
