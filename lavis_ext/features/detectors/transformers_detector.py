"""`hf_detector`: any detector of transformers that predicts a set of boxes from queries (DETR, YOLOS, RT-DETR, …).

A region's features are the last hidden state of its query: as wide as the model is, which is not 2,048.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext.common.errors import ConfigError, IntegrityError, NetworkError, UsageError
from lavis_ext.common.files import expanded, sha256_of
from lavis_ext.common.registry import detectors
from lavis_ext.features.detectors import ops
from lavis_ext.features.detectors.base import GEOMETRY, DetectedRegions, DetectorOptions, checked, geometry, read_names
from lavis_ext.features.detectors.c4 import usable
from lavis_ext.features.layout import Array
from lavis_ext.fetch.transfer import offline_from_environment

LEAST, MOST, CONF = 10, 100, 0.2
"""How many regions are kept, and from which confidence, where the options leave it open: as of the other detectors."""


@detectors.register("hf_detector")
class QueryDetector:
    """A model of transformers' `AutoModelForObjectDetection` behind the protocol.

    `weights` is a folder in transformers' form or a hub name. Images are taken one at a time. Raises ConfigError for a
    folder that holds no such model, NetworkError where the hub does not give it.
    """

    name = "hf_detector"

    def __init__(self, options: DetectorOptions) -> None:
        if options.weights is None:
            raise UsageError(
                self.name, "needs a model", "name a folder in transformers' form, or owner/model, with --weights"
            )
        self.options = options
        self.least, self.most = options.bounds(LEAST, MOST)
        self.conf = CONF if options.conf is None else options.conf
        self.device = usable(options.device)
        self._processor, self.model = load(options.weights)
        self.model = self.model.to(self.device).eval()
        self._accepted = set(inspect.signature(self.model.forward).parameters)
        known: dict[int, str] = self.model.config.id2label
        own = tuple(known.get(number, "") for number in range(max(known, default=-1) + 1))
        self.classes: Sequence[str] = read_names(options.classes, "label", len(own)) or own
        self.attributes: Sequence[str] = ()

    @property
    def columns(self) -> int:
        """Width of a feature row: the hidden size of the model, and the geometry if that is asked for."""
        config = self.model.config
        width: int = config.d_model if hasattr(config, "d_model") else config.hidden_size
        return width + (GEOMETRY if self.options.geometry else 0)

    @property
    def identity(self) -> dict[str, object]:
        """Name, settings and weights, as JSON can hold them."""
        weights = str(self.options.weights)
        files = sorted(expanded(weights).glob("*.safetensors"))
        marks = [f"sha256:{sha256_of(file)}" for file in files] or [str(getattr(self.model.config, "_commit_hash", ""))]
        settings = {"conf": self.conf, "min_boxes": self.least, "max_boxes": self.most}
        more = {"precision": self.options.precision, "geometry": self.options.geometry}
        return {"detector": self.name, "model": weights, "weights": marks, "settings": settings | more}

    def detect(self, images: Sequence[Array]) -> list[DetectedRegions]:
        """Regions of images uint8 [H, W, 3] RGB; raises UsageError for an array of another form."""
        dtype = getattr(torch, self.options.precision)
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return [self._one(checked(image)) for image in images]

    def _one(self, image: Array) -> DetectedRegions:
        height, width = image.shape[:2]
        inputs = self._processor(images=image, input_data_format="channels_last", return_tensors="pt")
        inputs = {name: value.to(self.device) for name, value in inputs.items() if name in self._accepted}
        outputs = self.model(**inputs)
        features = query_states(outputs)
        probabilities = class_probabilities(outputs.logits[0].float(), len(self.model.config.id2label))
        best = probabilities[:, 1:].max(dim=1)
        kept = ops.choose(best.values, self.conf, self.least, self.most)
        regions = DetectedRegions(
            boxes=corners(outputs.pred_boxes[0].float()[kept], height, width).cpu().numpy(),
            features=features[kept].cpu().numpy(),
            objects_id=best.indices[kept].cpu().numpy(),
            objects_conf=best.values[kept].cpu().numpy(),
            height=height,
            width=width,
        )
        if self.options.probabilities:
            regions.cls_prob = regions.classes = probabilities[kept].cpu().numpy()
        if self.options.geometry:
            regions.features = np.concatenate([regions.features, geometry(regions.boxes, height, width)], axis=1)
        return regions


def query_states(outputs: Any) -> Tensor:
    """The last hidden state of every query, float32 [Q, D]; raises ConfigError for a model without queries.

    YOLOS has patches before its queries in one sequence: the last Q rows are the queries.
    """
    states, boxes = getattr(outputs, "last_hidden_state", None), getattr(outputs, "pred_boxes", None)
    if states is None or boxes is None or states.ndim != 3 or states.shape[1] < boxes.shape[1]:
        raise ConfigError("hf_detector", "this model has no queries with hidden states", "name one of the DETR family")
    return states[0, -boxes.shape[1] :].float()  # type: ignore[no-any-return]


def class_probabilities(logits: Tensor, known: int) -> Tensor:
    """Probabilities [Q, classes + 1], background first, of logits [Q, classes] or [Q, classes + 1].

    With a column more than the model names classes it is a softmax with "no object" last (DETR, YOLOS). Without, each
    class has a sigmoid of its own (Deformable DETR, RT-DETR), and what the best of them leaves is the background.
    """
    if logits.shape[1] == known + 1:
        return logits.softmax(dim=1).roll(1, dims=1)
    each = logits.sigmoid()
    return torch.cat([1 - each.max(dim=1, keepdim=True).values, each], dim=1)


def corners(boxes: Tensor, height: int, width: int) -> Tensor:
    """Centre, width and height as fractions [n, 4] → x1, y1, x2, y2 in pixels, inside the image."""
    half = boxes[:, 2:] / 2
    size = boxes.new_tensor([width, height, width, height])
    fractions = torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], dim=1)
    return fractions.clamp(0, 1) * size


def load(name: str) -> tuple[Any, Any]:
    """Image processor and model from a folder or a hub name; raises ConfigError, IntegrityError or NetworkError."""
    import transformers

    found = (transformers.AutoImageProcessor, transformers.AutoModelForObjectDetection)
    if os.path.isdir(expanded(name)):  # noqa: PTH112 - of any text, without an error
        folder = expanded(name)
        processor, model = (_from_folder(kind.from_pretrained, folder) for kind in found)
    elif name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise ConfigError("hf_detector", f"no folder {name}", "name a folder in transformers' form, or owner/model")
    else:
        processor, model = (_from_hub(kind.from_pretrained, name) for kind in found)
    return processor, model


def _from_folder(read: Callable[..., Any], folder: Path) -> Any:
    try:
        return read(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        way_out = "put config.json, preprocessor_config.json and model.safetensors there"
        raise ConfigError(f"hf_detector {folder}", _said(error), way_out) from error
    except Exception as error:
        # damaged weights, and pickled ones that want to run code, come as exceptions of many classes
        raise IntegrityError(f"hf_detector {folder}", _said(error), "fetch or save the weights again") from error


def _from_hub(read: Callable[..., Any], name: str) -> Any:
    alone = offline_from_environment() or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    way_out = f"on a machine that has it, `hf download {name} --local-dir DIR`; then name DIR"
    try:
        return read(name, local_files_only=alone)
    except Exception as error:
        reason = "not in the local hub cache, and offline" if alone else _said(error)
        raise NetworkError(f"hf_detector '{name}'", reason, way_out) from error


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
