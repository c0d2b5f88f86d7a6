"""Between float32 and float16 through torch, which has the processor's instructions for it (numpy is far slower)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from lavis_ext.features.layout import Array
from lavis_ext.features.row import BadRow

if TYPE_CHECKING:
    import torch


LARGEST = 65520.0
"""What float16 rounds to infinity."""


def cast_rows(features: Array, dtype: str) -> Array:
    """Features in the precision of a store; raises BadRow where a finite number does not fit float16."""
    if features.dtype == np.dtype(dtype):
        return np.ascontiguousarray(features)
    if features.dtype not in (np.float16, np.float32):
        features = features.astype(np.float32)
    if dtype == "float32":
        return features.astype(np.float32)
    return _to_half(features)


def _to_half(features: Array) -> Array:
    source = flat_tensor(np.ascontiguousarray(features), np.dtype(np.float32)).view(features.shape)
    half = source.half()
    least, most = (abs(float(bound)) for bound in source.aminmax()) if features.size else (0.0, 0.0)
    if not max(least, most) < LARGEST and np.isfinite(features).all():
        raise BadRow(f"a feature of {float(np.abs(features).max()):g} does not fit float16; import with float32")
    result: Array = half.numpy()
    return result


def flat_tensor(buffer: Any, dtype: np.dtype[Any]) -> torch.Tensor:
    """A tensor over a buffer that is only read; torch's warning that it could be written is kept quiet."""
    import torch

    kind = {2: torch.float16, 4: torch.float32}[dtype.itemsize]
    if not memoryview(buffer).nbytes:
        return torch.empty(0, dtype=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(buffer, dtype=kind)
