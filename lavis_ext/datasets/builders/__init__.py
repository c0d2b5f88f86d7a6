"""Data sets by name: a declaration becomes {split: data set} through the shape that it names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.common.config.cards import load_cards, load_dataset_config
from lavis_ext.common.config.resolve import cache_root
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import UsageError
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Dataset

if TYPE_CHECKING:
    from lavis_ext.datasets.builders.context import BuildContext, NotPreparedError


def build_datasets(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Every wanted split; raises ConfigError for a bad declaration, NotPreparedError for missing files."""
    built: dict[str, Dataset] = builders.get(config.builder)(config, context)
    return built


def load_dataset(
    name: str, cfg_path: str | Path | None = None, vis_path: str | Path | None = None, data_type: str | None = None
) -> dict[str, Dataset]:
    """LAVIS' function: `load_dataset("coco_caption")["val"][0]`.

    `cfg_path` is a YAML with a `datasets:` section (the first in it is taken unless `name` is there), `vis_path`
    replaces the folder of the pictures; `data_type` can only be `images`. Raises UsageError for an unknown name.
    """
    if data_type not in (None, "images"):
        raise UsageError(f"load_dataset('{name}')", f"data_type '{data_type}' is not read here", "leave it out")
    builder = DatasetBuilder(name, cfg_path)
    if vis_path is not None:
        info = builder.config.build_info
        images = replace(info.images, storage=str(Path(vis_path).expanduser().absolute()))
        builder.config = replace(builder.config, build_info=replace(info, images=images))
    return builder.build_datasets()


def names() -> list[str]:
    """The names of all data sets that a card declares."""
    return load_cards().names()


class DatasetBuilder:
    """LAVIS' builder of one data set: `.config`, and `.build_datasets()`.

    `cfg` is None (the shipped declaration), a YAML path or a DatasetConfig.
    """

    def __init__(self, name: str, cfg: str | Path | DatasetConfig | None = None) -> None:
        self.config: DatasetConfig = _declaration(name, cfg)

    def build_datasets(self) -> dict[str, Dataset]:
        """{split: data set} of all splits whose files are there; nothing is downloaded."""
        from lavis_ext.datasets.builders.context import BuildContext

        return build_datasets(self.config, BuildContext(cache_root()))


def builder_class(name: str) -> Callable[..., DatasetBuilder]:
    """What makes a data set's builder, called like LAVIS' class: with nothing or `cfg`. Raises UsageError."""
    load_cards().card_of(name)
    return partial(DatasetBuilder, name)


def _declaration(name: str, cfg: str | Path | DatasetConfig | None) -> DatasetConfig:
    if isinstance(cfg, DatasetConfig):
        return cfg
    return load_cards().dataset(name) if cfg is None else load_dataset_config(cfg, name)


__all__ = [
    "BuildContext",
    "DatasetBuilder",
    "NotPreparedError",
    "build_datasets",
    "builder_class",
    "load_dataset",
    "names",
]


def __getattr__(name: str) -> Any:
    """What opens files brings pyarrow, which those who only read the keys of a shape do without."""
    if name not in __all__:
        raise AttributeError(f"module 'lavis_ext.datasets.builders' has no attribute '{name}'")
    return getattr(import_module("lavis_ext.datasets.builders.context"), name)
