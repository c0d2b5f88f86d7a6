"""Data sets by name: a declaration becomes {split: data set} through the shape that it names."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.errors import UsageError
from lavis_ext.common.types import Dataset
from lavis_ext.datasets.builders.base_dataset_builder import BaseDatasetBuilder, build_datasets, builder_class

if TYPE_CHECKING:
    from lavis_ext.datasets.builders.context import BuildContext, NotPreparedError


def load_dataset(
    name: str, cfg_path: str | Path | None = None, vis_path: str | Path | None = None, data_type: str | None = None
) -> dict[str, Dataset]:
    """LAVIS' function: `load_dataset("coco_caption")["val"][0]`.

    `cfg_path` is a YAML with a `datasets:` section (the first in it is taken unless `name` is there), `vis_path`
    replaces the folder of the pictures; `data_type` can only be `images`. Raises UsageError for an unknown name.
    """
    if data_type not in (None, "images"):
        raise UsageError(f"load_dataset('{name}')", f"data_type '{data_type}' is not read here", "leave it out")
    builder = BaseDatasetBuilder(name, cfg_path)
    if vis_path is not None:
        info = builder.config.build_info
        images = replace(info.images, storage=str(Path(vis_path).expanduser().absolute()))
        builder.config = replace(builder.config, build_info=replace(info, images=images))
    return builder.build_datasets()


def names() -> list[str]:
    """The names of all data sets that a card declares."""
    return load_cards().names()


__all__ = [
    "BaseDatasetBuilder",
    "BuildContext",
    "NotPreparedError",
    "build_datasets",
    "builder_class",
    "load_dataset",
    "names",
]


def __getattr__(name: str) -> Any:
    """Import what opens files only on use: it needs pyarrow, and reading the keys of a shape does not."""
    if name not in __all__:
        raise AttributeError(f"module 'lavis_ext.datasets.builders' has no attribute '{name}'")
    return getattr(import_module("lavis_ext.datasets.builders.context"), name)
