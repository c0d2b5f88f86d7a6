"""A data set's builder with LAVIS' interface; it calls the shape that the declaration names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lavis_ext.common.config.cards import load_cards, load_dataset_config
from lavis_ext.common.config.resolve import cache_root
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Dataset

if TYPE_CHECKING:
    from lavis_ext.datasets.builders.context import BuildContext


def build_datasets(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Every wanted split; raises ConfigError for a bad declaration, NotPreparedError for missing files."""
    built: dict[str, Dataset] = builders.get(config.builder)(config, context)
    return built


class BaseDatasetBuilder:
    """LAVIS' builder of one data set: `.config`, and `.build_datasets()`.

    `cfg` is None (the shipped declaration), a YAML path or a DatasetConfig.
    """

    def __init__(self, name: str, cfg: str | Path | DatasetConfig | None = None) -> None:
        self.config: DatasetConfig = declaration(name, cfg)

    def build_datasets(self) -> dict[str, Dataset]:
        """{split: data set} of all splits whose files are there; nothing is downloaded."""
        from lavis_ext.datasets.builders.context import BuildContext

        return build_datasets(self.config, BuildContext(cache_root()))


def builder_class(name: str) -> Callable[..., BaseDatasetBuilder]:
    """What makes a data set's builder, called like LAVIS' class: `cfg` is optional. Raises UsageError."""
    load_cards().card_of(name)
    return partial(BaseDatasetBuilder, name)


def declaration(name: str, cfg: str | Path | DatasetConfig | None) -> DatasetConfig:
    """The declaration of a data set: the shipped one, that of a YAML, or the one given."""
    if isinstance(cfg, DatasetConfig):
        return cfg
    return load_cards().dataset(name) if cfg is None else load_dataset_config(cfg, name)
