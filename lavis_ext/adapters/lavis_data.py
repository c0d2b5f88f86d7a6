"""Builders of LAVIS' kind over our declarations, and data sets as LAVIS' runners and tasks take them."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import yaml
from torch.utils.data import Dataset

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.config.decode import ConfigDecoder
from lavis_ext.common.config.resolve import Tree, dataset_defaults, merge
from lavis_ext.common.config.schema import DatasetConfig, ProcessorPair
from lavis_ext.common.types import Batch, Sample
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.datasets.builders.image_text_shards import ImageTextStream
from lavis_ext.datasets.readers.faults import FaultLog, SampleError

log = logging.getLogger(__name__)
TRIES = 100


def builder_class(name: str, cache_root: Path) -> type:
    """A subclass of LAVIS' BaseDatasetBuilder for a data set of ours, with each of its config types."""
    base = import_module("lavis.datasets.builders.base_dataset_builder").BaseDatasetBuilder
    types = {kind: str(own_yaml(name, kind)) for kind in load_cards().card_of(name).datasets[name]}
    body = {"DATASET_CONFIG_DICT": types, "dataset_name": name, "cache_root": cache_root, "__doc__": f"Builds {name}."}
    return type(f"{name.title().replace('_', '')}Builder", (CardBuilder, base), body)


class CardBuilder:
    """What our builders do in place of LAVIS': nothing is downloaded in training, `lavis-ext prepare` has done it.

    Mixed into LAVIS' BaseDatasetBuilder, which gives `config` (DictConfig) and `build_processors()`. The processors are
    those that LAVIS' registry holds under the configured names.
    """

    dataset_name: ClassVar[str]
    cache_root: ClassVar[Path]
    train_dataset_cls: Any = None
    eval_dataset_cls: Any = None
    config: Any
    vis_processors: dict[str, Any]
    text_processors: dict[str, Any]

    def build_datasets(self) -> dict[str, Any]:
        """{split: data set} of what is there; raises NotPreparedError, an error with the command that prepares it."""
        return self.build()

    def build(self) -> dict[str, Any]:
        """The same, under the name that LAVIS' builders override."""
        self.build_processors()  # type: ignore[attr-defined]  # LAVIS' base has it
        config = declaration(self.dataset_name, merge(self.config))
        bare = replace(config, vis_processor=ProcessorPair(), text_processor=ProcessorPair())
        built = build_datasets(bare, BuildContext(self.cache_root))
        return {split: self._wrap(dataset, "train" if split == "train" else "eval") for split, dataset in built.items()}

    def _wrap(self, dataset: Any, side: str) -> Any:
        chosen = {"vis_processor": self.vis_processors[side], "text_processor": self.text_processors[side]}
        if isinstance(dataset, ImageTextStream):
            # LAVIS recognises streams by this class, and chains them apart from map-style data sets
            return replace(dataset, **chosen).as_pipeline()
        return LavisDataset(replace(dataset, parts=replace(dataset.parts, **chosen)), training=side == "train")


class LavisDataset(Dataset[Sample]):
    """A map-style data set with LAVIS' keys and `collater`; other attributes are those of our data set.

    A training sample that cannot be read is counted in `faults`, logged, and replaced by the next one that
    can; PartialError (exit code 8) is raised once more are lost than the data set tolerates. In other splits the
    SampleError is raised, since results are counted there.
    """

    def __init__(self, inner: Any, training: bool) -> None:
        self.inner, self.training = inner, training
        self.faults = FaultLog(tolerances={inner.name: inner.tolerance})

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Sample:
        if not self.training:
            return self._read(index)
        for step in range(min(TRIES, len(self))):
            self.faults.seen(self.inner.name, self.inner.split, 1)
            try:
                return self._read((index + step) % len(self))
            except SampleError as error:
                last = error
                log.warning("left out: %s", error)
                self.faults.record(self.inner.name, self.inner.split, error)
                self.faults.check()
        raise last

    def _read(self, index: int) -> Sample:
        sample: Sample = self.inner[index]
        return sample

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Samples → batch in LAVIS' form."""
        batch: Batch = self.inner.collater(samples)
        return batch

    def __getattr__(self, name: str) -> Any:
        if name == "inner" or name.startswith("__"):  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)


def declaration(name: str, body: Tree) -> DatasetConfig:
    """A data set from what LAVIS merged of its YAMLs; raises ConfigError with every mistake in it."""
    decoder = ConfigDecoder()
    known = {"name": name, "family": load_cards().card_of(name).family}
    built: DatasetConfig | None = decoder.build(DatasetConfig, {**known, **body}, f"datasets.{name}")
    decoder.close()
    if built is None:
        raise RuntimeError("unreachable: `close` has raised")
    return built


def own_yaml(name: str, kind: str) -> Path:
    """The absolute path of a YAML that declares this data set under this type, and no other.

    The shipped file, or a copy of a part of it: LAVIS builds every data set that a default YAML names.
    """
    body, path, _ = dataset_defaults()[name][kind]
    declared = [other for other, types in dataset_defaults().items() for _, p, _ in types.values() if p == path]
    if declared == [name]:
        return path.absolute()
    alone = _folder() / f"{name}.{kind}.yaml"
    alone.write_text(yaml.safe_dump({"datasets": {name: body}}, sort_keys=False), encoding="utf-8")
    return alone


@cache
def _folder() -> Path:
    folder = TemporaryDirectory(prefix="lavis_ext-")
    atexit.register(folder.cleanup)
    return Path(folder.name)
