"""Published weights of detectors: read without executing pickles, renamed to the names of `c4.C4Network`, loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext.common.errors import IntegrityError, UsageError
from lavis_ext.common.files import not_there, read_errors, read_file
from lavis_ext.common.tensors import read_safetensors
from lavis_ext.features.detectors.c4 import C4Network
from lavis_ext.features.detectors.ops import cell_anchors
from lavis_ext.features.formats.arrays import load_tensors
from lavis_ext.features.formats.restricted import load_plain

Tensors = dict[str, Tensor]
BUTD_SIZES, VINVL_SIZES, RATIOS = (64, 128, 256, 512), (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
"""Sides of the anchors in pixels, and their heights to their widths."""
SHOWN = 8
"""Names that an error lists before it counts the others."""

_NORM = r"(weight|bias|running_mean|running_var)"
_BLOCK = [
    (r"(\d+)\.conv(\d)\.weight", r"\1.conv\2.weight"),
    (rf"(\d+)\.conv(\d)\.norm\.{_NORM}", r"\1.bn\2.\3"),
    (r"(\d+)\.shortcut\.weight", r"\1.downsample.0.weight"),
    (rf"(\d+)\.shortcut\.norm\.{_NORM}", r"\1.downsample.1.\2"),
]


@dataclass(frozen=True)
class TensorNames:
    """A publisher's names of tensors.

    `names` are pairs of a pattern for a whole name and what it becomes; `spare` are patterns of names that the network
    does not use; `finish` brings the renamed tensors into the network's order and checks what is this publisher's.
    """

    title: str
    names: Sequence[tuple[str, str]]
    spare: Sequence[str]
    finish: Callable[[Tensors, Tensors], Tensors]

    def rename(self, name: str) -> str | None:
        """The network's name; "" for a spare one, None for an unknown one."""
        for pattern, target in self.names:
            if re.fullmatch(pattern, name):
                return re.sub(pattern, target, name)
        return "" if any(re.fullmatch(pattern, name) for pattern in self.spare) else None


def _background_first(found: Tensors, _: Tensors) -> Tensors:
    """Detectron2 counts the background last; here, as in Caffe, it is class 0."""
    last = ("head.cls_score.", "attribute.cls_embedding.", "attribute.attr_score.")
    return {name: t.roll(1, 0) if name.startswith(last) else t for name, t in found.items()}


def _one_res5(found: Tensors, spare: Tensors) -> Tensors:
    """scene_graph_benchmark saves res5 twice where both heads share it; two that differ are not that network.

    Its anchors are saved too, and must be the ones that are computed here.
    """
    ours = cell_anchors(16, VINVL_SIZES, RATIOS)
    anchors = [t for name, t in spare.items() if "cell_anchors" in name]
    if any(t.shape != ours.shape or not torch.allclose(t.float(), ours) for t in anchors):
        raise IntegrityError("weights", "they were trained with other anchors", "use the published vinvl_vg_x152c4.pth")
    prefix = "attribute.feature_extractor.head."
    other = [n for n, t in spare.items() if n.startswith(prefix) and not _same(t, found, "head." + n[len(prefix) :])]
    if other:
        raise IntegrityError(
            "weights",
            f"the attribute head has a res5 of its own: {_listed(other)}",
            "use the published vinvl_vg_x152c4.pth",
        )
    return found


def _same(tensor: Tensor, found: Tensors, name: str) -> bool:
    return name in found and torch.equal(tensor, found[name])


DETECTRON2 = TensorNames(
    "py-bottom-up-attention's faster_rcnn_from_caffe_attr.pkl",
    [
        (r"backbone\.stem\.conv1\.weight", "backbone.stem.conv1.weight"),
        (rf"backbone\.stem\.conv1\.norm\.{_NORM}", r"backbone.stem.bn1.\1"),
        *((rf"backbone\.res{n + 1}\." + a, rf"backbone.layer{n}." + b) for n in (1, 2, 3) for a, b in _BLOCK),
        *((r"roi_heads\.res5\." + a, "head.layer4." + b) for a, b in _BLOCK),
        (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.conv.\1"),
        (r"proposal_generator\.rpn_head\.objectness_logits\.(weight|bias)", r"rpn.cls_logits.\1"),
        (r"proposal_generator\.rpn_head\.anchor_deltas\.(weight|bias)", r"rpn.bbox_pred.\1"),
        (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.(weight|bias)", r"head.\1.\2"),
        (r"roi_heads\.box_predictor\.(cls_embedding|fc_attr|attr_score)\.(weight|bias)", r"attribute.\1.\2"),
    ],
    [r"proposal_generator\.anchor_generator\.cell_anchors\.\d+", r"pixel_(mean|std)", r".*\.num_batches_tracked"],
    _background_first,
)

MASKRCNN = TensorNames(
    "scene_graph_benchmark's vinvl_vg_x152c4.pth",
    [
        (r"backbone\.body\.(.+)", r"backbone.\1"),
        (r"rpn\.head\.((?:conv|cls_logits|bbox_pred)\.(?:weight|bias))", r"rpn.\1"),
        (r"roi_heads\.box\.feature_extractor\.head\.(layer4\..+)", r"head.\1"),
        (r"roi_heads\.box\.predictor\.((?:cls_score|bbox_pred)\.(?:weight|bias))", r"head.\1"),
        (r"attribute\.predictor\.((?:cls_embedding|fc_attr|attr_score)\.(?:weight|bias))", r"attribute.\1"),
    ],
    [r"rpn\.anchor_generator\.cell_anchors\.\d+", r"attribute\.feature_extractor\.head\.layer4\..+"],
    _one_res5,
)


def read_weights(path: Path) -> Tensors:
    """The tensors of a file, by name: `.pkl` of numpy arrays, `.safetensors`, else torch's own form.

    Tensors may be under `model` or `state_dict`; a prefix `module.` of all names is removed. Raises UsageError
    where no file is, UnsafeError (exit code 10) for a pickle of more than data, IntegrityError for damage.
    """
    check_there(path)
    content: Any = _read(path)
    for inner in ("model", "state_dict"):
        if isinstance(content.get(inner), dict):
            content = content[inner]
    found = {str(name): _tensor(value) for name, value in content.items()}
    tensors = {name: value for name, value in found.items() if value is not None}
    if not tensors:
        raise IntegrityError(str(path), "holds no tensors", "name the file with the detector's weights")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def check_there(path: Path) -> None:
    """Raise UsageError where no file is."""
    if not path.is_file():
        raise UsageError(str(path), *not_there(path, "file", otherwise="name the file with the detector's weights"))


def _read(path: Path) -> dict[Any, Any]:
    if path.suffix == ".pkl":
        with read_errors(path):
            content = load_plain(read_file(path), str(path))
        if not isinstance(content, dict):
            raise IntegrityError(str(path), f"expected a dict, got a {type(content).__name__}", "name another file")
        return content
    if path.suffix == ".safetensors":
        return dict(read_safetensors(path))
    return load_tensors(path)


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else None


def fit(network: C4Network, tensors: Tensors, naming: TensorNames, where: str) -> None:
    """Load tensors into the network, under the publisher's names or the network's own.

    Raises IntegrityError that names every tensor that is unknown, missing or of another shape.
    """
    wanted = network.state_dict()
    if set(tensors) != set(wanted):
        tensors = _renamed(tensors, naming, where)
    missing = [name for name in wanted if name not in tensors]
    others = [
        f"{name} {list(t.shape)} instead of {list(wanted[name].shape)}"
        for name, t in tensors.items()
        if name in wanted and t.shape != wanted[name].shape
    ]
    unknown = [name for name in tensors if name not in wanted]
    for what, names in (("unknown", unknown), ("missing", missing), ("of another shape", others)):
        if names:
            raise _misfit(where, what, names, naming)
    network.load_state_dict({name: t.to(torch.float32) for name, t in tensors.items()}, assign=True)


def _renamed(tensors: Tensors, naming: TensorNames, where: str) -> Tensors:
    names = {name: naming.rename(name) for name in tensors}
    unknown = [name for name, target in names.items() if target is None]
    if unknown:
        raise _misfit(where, "unknown", unknown, naming)
    found = {target: tensors[name] for name, target in names.items() if target}
    return naming.finish(found, {name: tensors[name] for name, target in names.items() if target == ""})


def _misfit(where: str, what: str, names: list[str], naming: TensorNames) -> IntegrityError:
    return IntegrityError(where, f"{len(names)} tensors {what}: {_listed(names)}", f"expected {naming.title}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more
