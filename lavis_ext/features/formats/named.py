"""A row from named arrays, as H5 and npy hold them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lavis_ext.features.formats.base import number_of
from lavis_ext.features.formats.butd import MATRICES, VECTORS
from lavis_ext.features.formats.oscar import boxes_of
from lavis_ext.features.layout import NO_BOXES, PIXELS, Array
from lavis_ext.features.row import BadRow, ReadOptions, Row


def row_of_named(image_id: str, found: Mapping[str, Array], options: ReadOptions) -> Row:
    """`features` [n, columns], and where they are there `boxes` [n, 4] in pixels, `img_h`, `img_w` and the columns of
    volta's rows; raises BadRow."""
    features = found.get("features")
    if features is None or features.ndim != 2 or features.dtype.kind != "f":
        shape = None if features is None else (features.shape, str(features.dtype))
        raise BadRow(f"expected floating features [n, columns], got {shape}")
    if features.dtype.itemsize > 4:
        raise BadRow(f"expected float32 or float16, got {features.dtype}")
    if options.columns and len(features) and features.shape[1] != options.columns:
        raise BadRow(f"expected {options.columns} columns, got {features.shape[1]}")
    height, width = (_size(found, name) for name in ("img_h", "img_w"))
    boxes = found.get("boxes")
    if boxes is not None:
        boxes = _fitting("boxes", np.asarray(boxes, np.float32), len(features))
    kept = [*VECTORS, *(MATRICES if options.keep_all else ())]
    arrays = {name: _fitting(name, found[name], len(features)) for name in kept if name in found}
    return boxes_of(Row(image_id, features, boxes, NO_BOXES if boxes is None else PIXELS, height, width, arrays))


def _fitting(name: str, array: Array, count: int) -> Array:
    if array.ndim == 0 or len(array) != count or array.dtype.kind not in "iuf":
        raise BadRow(f"{name}: {array.shape} {array.dtype} for {count} boxes")
    return array


def _size(found: Mapping[str, Array], name: str) -> int:
    if name not in found:
        return 0
    if found[name].size != 1:
        raise BadRow(f"{name}: expected one number, got {found[name].shape}")
    return number_of(found[name].item(), name)
