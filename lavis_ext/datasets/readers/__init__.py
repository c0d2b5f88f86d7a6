"""Readers: annotation files, image folders, archives and shards become rows and pictures; faults are counted."""

# No `from __future__ import annotations` here: the name would hide the module `annotations`.
from typing import TYPE_CHECKING

from lavis_ext.common.names import imported_on_use
from lavis_ext.datasets.readers.faults import FaultLog, SampleError

if TYPE_CHECKING:
    from lavis_ext.datasets.readers.annotations import Annotations
    from lavis_ext.datasets.readers.decode import decode_rgb
    from lavis_ext.datasets.readers.images import ImageStore

_LAZY = {"Annotations": "annotations", "ImageStore": "images", "decode_rgb": "decode"}

__all__ = ["Annotations", "FaultLog", "ImageStore", "SampleError", "decode_rgb"]
__getattr__ = imported_on_use(__name__, _LAZY)
