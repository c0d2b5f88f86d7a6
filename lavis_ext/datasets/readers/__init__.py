"""Readers: annotation files, image folders, archives and shards become rows and pictures; faults are counted."""

# No `from __future__ import annotations` here: the name would hide the module `annotations`.
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lavis_ext.datasets.readers.faults import FaultLog, SampleError

if TYPE_CHECKING:
    from lavis_ext.datasets.readers.annotations import Annotations
    from lavis_ext.datasets.readers.decode import decode_rgb
    from lavis_ext.datasets.readers.images import ImageStore

_LAZY = {"Annotations": "annotations", "ImageStore": "images", "decode_rgb": "decode"}

__all__ = ["Annotations", "FaultLog", "ImageStore", "SampleError", "decode_rgb"]


def __getattr__(name: str) -> Any:
    """The readers that need pyarrow, numpy or Pillow, imported on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
