"""Oscar's `.pt` files: a dict from image id to a tensor [n, 2054], loaded without running anything in it."""

from __future__ import annotations

import logging
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext.errors import IntegrityError
from lavis_ext.features.files import disk_errors, finish, part_of, read_errors, refuse_existing
from lavis_ext.features.formats.base import guard, shown
from lavis_ext.features.formats.oscar import Sides
from lavis_ext.features.formats.restricted import unsafe
from lavis_ext.features.layout import Array
from lavis_ext.features.row import BadRow, ReadOptions, Row, Rows, Start, shape_features
from lavis_ext.features.store import FeatureStore

log = logging.getLogger(__name__)


class OscarPt:
    """`{split}_img_frcnn_feats.pt`; ids are integers or text, as the store's source says."""

    name = "oscar-pt"

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """The tensors in the order of the dict; files of the zip form are mapped, older ones fill the memory."""
        content = load_tensors(path)
        sides = Sides(path, options)
        for number, (key, value) in enumerate(content.items(), 1):
            if number > start.line:
                yield guard(number, number, str(key), partial(_row, key, value, sides, options))

    def write(self, store: FeatureStore, path: Path, options: dict[str, Any]) -> list[str]:
        """Write `path` in torch's zip form, each tensor straight from the store; ids become int where they were."""
        import torch

        refuse_existing(path)
        as_int = options.get("ids") == "int"
        content: dict[int | str, torch.Tensor] = {}
        for row in range(len(store)):
            record = store.at(row)
            content[int(record.image_id) if as_int else record.image_id] = tensor_of(record.features)
        part = part_of(path)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, part)
        finish(part, path)
        return []


def tensor_of(features: Array) -> Any:
    """A tensor over the mapped rows, without a copy."""
    import torch

    from lavis_ext.features.casting import flat_tensor

    if not features.size:
        return torch.from_numpy(features.copy())
    return flat_tensor(np.ascontiguousarray(features).data.cast("B"), features.dtype).view(features.shape)


def load_tensors(path: Path) -> dict[Any, Any]:
    """The dict in a file; raises UnsafeError (exit code 10) where it is more than data, IntegrityError for damage."""
    content = _load(path)
    if not isinstance(content, dict):
        raise IntegrityError(
            str(path), f"expected a dict of tensors, got a {type(content).__name__}", "name another file"
        )
    return content


def _load(path: Path) -> Any:
    import torch

    with read_errors(path), path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if not zipped:
        log.warning("%s: an old form of torch's files, which is read into memory whole", path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error) or "Weights only" in str(error):
            raise unsafe(str(path), "a pickle that asks for more than tensors") from error
        raise IntegrityError(str(path), f"cannot be read: {error}", "fetch it again") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise IntegrityError(str(path), f"cannot be read: {shown(error)}", "fetch it again") from error


def _row(key: Any, value: Any, sides: Sides, options: ReadOptions) -> Row:
    import torch

    if not isinstance(value, torch.Tensor) or value.ndim != 2:
        raise BadRow(f"expected a tensor [n, columns], got {shown(getattr(value, 'shape', type(value).__name__))}")
    if value.dtype not in (torch.float16, torch.float32):
        raise BadRow(f"expected float32 or float16, got {value.dtype}")
    array: Array = value.contiguous().numpy()
    shape_features(array.tobytes()[:0] if not array.size else array.data.cast("B"), len(array), options.columns)
    return sides.add(Row(str(key), array, number_id=isinstance(key, int)))
