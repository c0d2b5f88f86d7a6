"""The networks at full size, on the meta device: counts, shapes and strides against published tables."""

import pytest
import torch
from torch import nn

from lavis_ext.features.detectors.c4 import BUTD, VINVL, Bottleneck, C4Network, FrozenNorm, Layers
from lavis_ext.features.detectors.published import draw

RESNET101 = 44_549_160 - (2048 * 1000 + 1000) - 105_344
"""Convolutions of torchvision's ResNet-101: its published count without the classifier and without the norms."""


@pytest.fixture(scope="module")
def butd() -> C4Network:
    with torch.device("meta"):
        return C4Network(BUTD)


@pytest.fixture(scope="module")
def vinvl() -> C4Network:
    with torch.device("meta"):
        return C4Network(VINVL)


def convolutions(*parts: nn.Module) -> int:
    return sum(m.weight.numel() for part in parts for m in part.modules() if isinstance(m, nn.Conv2d))


def residual(blocks: tuple[int, ...], width: int, groups: int) -> int:
    """Weights of a ResNe[X]t from the tables of He et al. and Xie et al.: bottlenecks of 1 × 1, 3 × 3, 1 × 1."""
    total, before = 7 * 7 * 3 * 64, 64
    for stage, count in enumerate(blocks):
        inner, outer = width * 2**stage, 256 * 2**stage
        for block in range(count):
            taken = before if block == 0 else outer
            total += taken * inner + 9 * inner * inner // groups + inner * outer
        total += before * outer
        before = outer
    return total


def shapes(network: C4Network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_butd_is_a_resnet_101(butd: C4Network) -> None:
    assert residual((3, 4, 23, 3), 64, 1) == RESNET101
    assert convolutions(butd.backbone, butd.head.layer4) == RESNET101
    assert sum(m.weight.numel() for m in butd.modules() if isinstance(m, FrozenNorm)) == 105_344 // 2


def test_vinvl_is_a_resnext_152(vinvl: C4Network) -> None:
    assert convolutions(vinvl.backbone, vinvl.head.layer4) == residual((3, 8, 36, 3), 256, 32)
    assert {m.conv2.groups for m in vinvl.modules() if isinstance(m, Bottleneck)} == {32}
    assert vinvl.backbone.layer1[0].conv2.weight.shape == (256, 8, 3, 3)  # 32 groups of 8


def test_butd_has_the_layers_of_the_prototxt(butd: C4Network) -> None:
    found = shapes(butd)
    assert found["rpn.conv.weight"] == (512, 1024, 3, 3)
    assert found["rpn.cls_logits.weight"] == (12, 512, 1, 1)
    assert found["rpn.bbox_pred.weight"] == (48, 512, 1, 1)
    assert found["head.cls_score.weight"] == (1601, 2048)
    assert found["head.bbox_pred.weight"] == (6400, 2048)
    assert found["attribute.cls_embedding.weight"] == (1601, 256)
    assert found["attribute.fc_attr.weight"] == (512, 2048 + 256)
    assert found["attribute.attr_score.weight"] == (401, 512)


def test_vinvl_has_the_layers_of_its_yaml(vinvl: C4Network) -> None:
    found = shapes(vinvl)
    assert found["rpn.conv.weight"] == (1024, 1024, 3, 3)
    assert found["rpn.cls_logits.weight"] == (15, 1024, 1, 1)
    assert found["rpn.bbox_pred.weight"] == (60, 1024, 1, 1)
    assert found["head.cls_score.weight"] == (1595, 2048)
    assert found["head.bbox_pred.weight"] == (1595 * 4, 2048)
    assert found["attribute.cls_embedding.weight"] == (1595, 256)
    assert found["attribute.fc_attr.weight"] == (512, 2304)
    assert found["attribute.attr_score.weight"] == (525, 512)


def test_caffes_resnet_strides_in_the_first_convolution(butd: C4Network) -> None:
    for stage in (butd.backbone.layer2, butd.backbone.layer3):
        assert (stage[0].conv1.stride, stage[0].conv2.stride) == ((2, 2), (1, 1))
        assert stage[0].downsample[0].stride == (2, 2)
    for block in butd.head.layer4:  # res5 keeps its size and looks twice as far
        assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (1, 1))
        assert (block.conv2.dilation, block.conv2.padding) == ((2, 2), (2, 2))


def test_resnext_strides_in_the_second_convolution(vinvl: C4Network) -> None:
    for stage in (vinvl.backbone.layer2, vinvl.backbone.layer3, vinvl.head.layer4):
        assert (stage[0].conv1.stride, stage[0].conv2.stride) == ((1, 1), (2, 2))
        assert stage[0].downsample[0].stride == (2, 2)
        assert {block.conv2.stride for block in stage[1:]} == {(1, 1)}
    assert vinvl.head.layer4[0].conv2.dilation == (1, 1)


@pytest.mark.parametrize(("kind", "roi"), [("butd", 14), ("vinvl", 7)])
def test_maps_have_a_sixteenth_of_the_image(kind: str, roi: int, request: pytest.FixtureRequest) -> None:
    network: C4Network = request.getfixturevalue(kind)
    image = torch.empty(1, 3, 600, 800, device="meta")
    mapped = network.backbone(image)
    assert mapped.shape == (1, 1024, 38, 50)
    logits, deltas = network.rpn(mapped)
    assert len(logits) == len(deltas) == 38 * 50 * network.layers.anchors
    pooled = torch.empty(2, 1024, 14, 14, device="meta")
    assert network.head.layer4(pooled).shape == (2, 2048, roi, roi)
    features, classes = network.head(pooled)
    assert (features.shape, classes.shape) == ((2, 2048), (2, network.layers.classes + 1))


@pytest.mark.parametrize(("ceil", "size"), [(True, 8), (False, 8)])
def test_the_stems_pooling_rounds_up_in_caffe(ceil: bool, size: int) -> None:
    layers = Layers((1,) * 4, (2,) * 4, (2,) * 4, 1, 1, 1, 1, 1, stem=1, ceil_pool=ceil)
    stem = C4Network(layers).backbone.stem
    nn.init.constant_(stem.conv1.weight, 0.0)
    stem.conv1.weight.data[0, :, 3, 3] = 1 / 3  # the middle of its window: every second pixel of each row
    image = torch.arange(29 * 29, dtype=torch.float32).view(1, 1, 29, 29).expand(1, 3, 29, 29)
    out = stem(image)[0, 0]
    rows = torch.arange(29 * 29).view(29, 29)[::2, ::2]  # 15 × 15
    windows = [rows[i : i + 3].max(dim=0).values for i in range(0, 15, 2)]  # without padding from the first row on
    if ceil:
        assert out.shape == (7, 7)
        assert out[:, 0].round().int().tolist() == [int(w[2]) for w in windows[:7]]
    else:
        assert out.shape == (size, size)
        assert out[0, 0].round().item() == rows[1, 1]  # the padded window holds two rows and two columns


def test_frozen_norm_is_batch_norm_that_learns_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    norm, reference = FrozenNorm(4, 1e-5), nn.BatchNorm2d(4, eps=1e-5).eval()
    values = {name: torch.rand(4, generator=generator) + 0.1 for name in norm.state_dict()}
    norm.load_state_dict(values)
    reference.load_state_dict(values | {"num_batches_tracked": torch.tensor(0)})
    x = torch.randn(2, 4, 3, 3, generator=generator)
    assert torch.allclose(reference(x), norm(x.clone()), atol=1e-5)
    assert list(norm.parameters()) == []


def test_rpn_numbers_follow_cells_and_then_anchors() -> None:
    layers = Layers((1,) * 4, (2,) * 4, (2, 2, 2, 2), 1, 1, anchors=3, rpn_channels=2, box_classes=1)
    head = C4Network(layers).rpn
    seen = torch.randn(1, 2, 4, 5, generator=torch.Generator().manual_seed(1))
    hidden = torch.relu(head.conv(seen))
    logits, deltas = head(seen)
    row, column, anchor = 2, 3, 1
    at = (row * 5 + column) * 3 + anchor
    assert logits[at] == head.cls_logits(hidden)[0, anchor, row, column]
    assert torch.equal(deltas[at], head.bbox_pred(hidden)[0, 4 * anchor : 4 * anchor + 4, row, column])


@pytest.mark.parametrize("in_1x1", [False, True])
def test_the_backbone_computes_what_transformers_resnet_computes(in_1x1: bool) -> None:
    from transformers import ResNetConfig, ResNetModel

    outer = (16, 32, 64, 128)
    inner = tuple(channels // 4 for channels in outer)
    layers = Layers((2, 3, 2, 2), inner, outer, 1, 1, 1, 1, 1, stem=8, stride_in_1x1=in_1x1, eps=1e-5)
    network = C4Network(layers)
    draw(network, 0)
    sizes = {"embedding_size": 8, "hidden_sizes": list(outer), "depths": [2, 3, 2, 2]}
    theirs = ResNetModel(ResNetConfig(**sizes, layer_type="bottleneck", downsample_in_bottleneck=in_1x1)).eval()
    ours = network.state_dict()
    for name, tensor in theirs.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(ours[as_ours(name)])
    image = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1)) * 60
    with torch.inference_mode():
        expected = theirs(image, output_hidden_states=True).hidden_states
        mapped = network.backbone(image)
        assert torch.allclose(mapped, expected[3], atol=1e-4)
        assert torch.allclose(network.head.layer4(mapped), expected[4], atol=1e-4)


def as_ours(name: str) -> str:
    """A name of transformers' ResNet under this project's."""
    last = name.split(".")[-1]
    kind = "conv" if ".convolution." in name else "bn"
    if name.startswith("embedder."):
        return f"backbone.stem.{kind}1.{last}"
    parts = name.split(".")
    stage, block = int(parts[2]), parts[4]
    place = "head.layer4" if stage == 3 else f"backbone.layer{stage + 1}"
    if parts[5] == "shortcut":
        return f"{place}.{block}.downsample.{0 if kind == 'conv' else 1}.{last}"
    return f"{place}.{block}.{kind}{int(parts[6]) + 1}.{last}"
