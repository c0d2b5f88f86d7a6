"""Small networks of both frames, their tensors under the publishers' names, and images for them."""

from dataclasses import replace

import numpy as np
import torch

from lavis_ext.features.detectors.base import DetectorOptions
from lavis_ext.features.detectors.c4 import C4Detector, C4Network, C4Settings, Layers
from lavis_ext.features.detectors.published import TINY, TINY_SETTINGS, VINVL_SETTINGS, draw

VINVL_LAYERS = replace(
    TINY, groups=2, stride_in_1x1=False, halve_res5=True, ceil_pool=False, eps=0.0, anchors=15, box_classes=7
)
SETTINGS: dict[str, C4Settings] = {
    "caffe": TINY_SETTINGS,
    "maskrcnn": replace(VINVL_SETTINGS, layers=VINVL_LAYERS, short=240, long=400, before=600, after=60, pool=4),
}


def drawn(layers: Layers, seed: int = 0) -> C4Network:
    network = C4Network(layers)
    draw(network, seed)
    return network


def detector(frame: str = "caffe", **options: object) -> C4Detector:
    settings = SETTINGS[frame]
    return C4Detector("small", drawn(settings.layers), settings, DetectorOptions(**options), "")


def picture(seed: int = 0, height: int = 120, width: int = 160) -> np.ndarray:
    """Coloured rectangles on noise."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 130, (height, width, 3)).astype(np.uint8)
    for _ in range(6):
        top, left = rng.integers(0, height - 20), rng.integers(0, width - 20)
        image[top : top + rng.integers(10, 60), left : left + rng.integers(10, 60)] = rng.integers(0, 256, 3)
    return image


def _block(prefix: str, tensors: dict[str, torch.Tensor], ours: str) -> dict[str, torch.Tensor]:
    """A bottleneck as detectron2 names it: a convolution owns its norm, the short cut is called so."""
    found = {}
    for name, tensor in tensors.items():
        if not name.startswith(ours + "."):
            continue
        block, part, *rest = name.removeprefix(ours + ".").split(".")
        if part.startswith("bn"):
            part = f"conv{part[2:]}.norm"
        elif part == "downsample":
            part = "shortcut" if rest[0] == "0" else "shortcut.norm"
            rest = rest[1:]
        found[".".join([prefix, block, part, *rest])] = tensor
    return found


def as_detectron2(network: C4Network) -> dict[str, np.ndarray]:
    """A state dict as py-bottom-up-attention's file has it: arrays of numpy."""
    return {name: tensor.numpy() for name, tensor in detectron2_tensors(network).items()}


def detectron2_tensors(network: C4Network) -> dict[str, torch.Tensor]:
    """Tensors under detectron2's names, background last; of any device."""
    ours = network.state_dict()
    out = {"backbone.stem.conv1.weight": ours["backbone.stem.conv1.weight"]}
    out |= {f"backbone.stem.conv1.norm.{k}": ours[f"backbone.stem.bn1.{k}"] for k in norm_names()}
    for stage in (1, 2, 3):
        out |= _block(f"backbone.res{stage + 1}", ours, f"backbone.layer{stage}")
    out |= _block("roi_heads.res5", ours, "head.layer4")
    for theirs, part in (("conv", "conv"), ("objectness_logits", "cls_logits"), ("anchor_deltas", "bbox_pred")):
        out |= {f"proposal_generator.rpn_head.{theirs}.{k}": ours[f"rpn.{part}.{k}"] for k in ("weight", "bias")}
    for part in ("cls_score", "bbox_pred"):
        out |= {f"roi_heads.box_predictor.{part}.{k}": ours[f"head.{part}.{k}"] for k in ("weight", "bias")}
    for part in ("fc_attr", "attr_score"):
        out |= {f"roi_heads.box_predictor.{part}.{k}": ours[f"attribute.{part}.{k}"] for k in ("weight", "bias")}
    out["roi_heads.box_predictor.cls_embedding.weight"] = ours["attribute.cls_embedding.weight"]
    for name in out:
        if name.split(".")[-2] in ("cls_score", "cls_embedding", "attr_score"):
            out[name] = torch.cat([out[name][1:], out[name][:1]])
    out["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(network.layers.anchors, 4)
    return out


def as_maskrcnn(network: C4Network) -> dict[str, torch.Tensor]:
    """A state dict as scene_graph_benchmark saves it from several devices: `module.`, res5 twice."""
    ours = network.state_dict()
    heads = {"layer4": "roi_heads.box.feature_extractor.head", "cls_score": "roi_heads.box.predictor"}
    heads["bbox_pred"] = "roi_heads.box.predictor"
    out = {}
    for name, tensor in ours.items():
        first, rest = name.split(".", 1)
        if first == "backbone":
            out["backbone.body." + rest] = tensor
        elif first == "rpn":
            out["rpn.head." + rest] = tensor
        elif first == "attribute":
            out["attribute.predictor." + rest] = tensor
        else:
            out[f"{heads[rest.split('.')[0]]}.{rest}"] = tensor
            if rest.startswith("layer4"):
                out["attribute.feature_extractor.head." + rest] = tensor.clone()
    return {"module." + name: tensor for name, tensor in out.items()}


def norm_names() -> tuple[str, ...]:
    return ("weight", "bias", "running_mean", "running_var")
