"""Region features: a store that is mapped into memory, and what converts published files to it and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lavis_ext.common.names import imported_on_use

if TYPE_CHECKING:
    from lavis_ext.features.imports import import_features
    from lavis_ext.features.layout import FRACTIONS, NO_BOXES, PIXELS, UnknownImage
    from lavis_ext.features.store import FeatureRow, FeatureStore, ReadOptions, Record, open_store
    from lavis_ext.features.tools import export_store, merge_stores
    from lavis_ext.features.writer import StoreWriter, create_store

_HOME = {
    "FRACTIONS": "layout",
    "NO_BOXES": "layout",
    "PIXELS": "layout",
    "FeatureStore": "store",
    "ReadOptions": "store",
    "Record": "store",
    "FeatureRow": "store",
    "StoreWriter": "writer",
    "UnknownImage": "layout",
    "create_store": "writer",
    "export_store": "tools",
    "import_features": "imports",
    "merge_stores": "tools",
    "open_store": "store",
}
__all__ = [
    "FRACTIONS",
    "NO_BOXES",
    "PIXELS",
    "FeatureRow",
    "FeatureStore",
    "ReadOptions",
    "Record",
    "StoreWriter",
    "UnknownImage",
    "create_store",
    "export_store",
    "import_features",
    "merge_stores",
    "open_store",
]
__getattr__ = imported_on_use(__name__, _HOME)
