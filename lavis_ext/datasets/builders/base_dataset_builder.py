"""Builders of data sets with LAVIS' interface: of a declared data set by its shape, or a class in LAVIS' manner."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.config.decode import ConfigDecoder, read_yaml
from lavis_ext.common.config.resolve import (
    beside,
    cache_root,
    config_roots,
    dataset_defaults,
    keep_unknown,
    merge,
)
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.config.script import reading
from lavis_ext.common.dist_utils import is_main_process
from lavis_ext.common.errors import ConfigError, nearest
from lavis_ext.common.files import expanded
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Dataset
from lavis_ext.common.utils import find_yaml
from lavis_ext.processors import load_processor
from lavis_ext.processors.base_processor import BaseProcessor

if TYPE_CHECKING:
    from lavis_ext.datasets.builders.context import BuildContext

log = logging.getLogger(__name__)
PROCESSORS = ("vis_processor", "text_processor")


def build_datasets(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Every wanted split; raises ConfigError for a bad declaration, NotPreparedError for missing files."""
    shape: Any = builders.get(config.builder)
    if isinstance(shape, type) and issubclass(shape, BaseDatasetBuilder):
        return shape.built_for(config, context)
    built: dict[str, Dataset] = shape(config, context)
    return built


class BaseDatasetBuilder:
    """LAVIS' builder of one data set: `config`, a node that may be changed, then `build_datasets()`.

    A class in LAVIS' manner sets `train_dataset_cls`, `eval_dataset_cls` and `DATASET_CONFIG_DICT` (config type → YAML,
    absolute or below the folder of `configs/`), and is registered; its data sets are made by LAVIS' four arguments. Of
    a data set that a card declares, `registry.get_builder_class(name)` is a subclass, with the shape's classes.

    `cfg` is None (the YAML of the type `default`), the path of a YAML, a section of one as a mapping, or a
    DatasetConfig. Nothing is downloaded: `lavis-ext prepare` does that.
    """

    train_dataset_cls: ClassVar[Any] = None
    eval_dataset_cls: ClassVar[Any] = None
    DATASET_CONFIG_DICT: ClassVar[Mapping[str, str]] = {}
    name: ClassVar[str] = ""
    """The data set that a card declares."""

    def __init__(self, cfg: str | Path | Mapping[str, Any] | DatasetConfig | None = None) -> None:
        self.config: Any = self._section(cfg)
        self.data_type = self.config.get("data_type", "images")
        self.vis_processors: dict[str, Any] = {"train": BaseProcessor(), "eval": BaseProcessor()}
        self.text_processors: dict[str, Any] = {"train": BaseProcessor(), "eval": BaseProcessor()}
        self.kw_processors: dict[str, Any] = {}
        self._context: BuildContext | None = None

    def _section(self, cfg: str | Path | Mapping[str, Any] | DatasetConfig | None) -> DictConfig:
        if isinstance(cfg, DatasetConfig):
            tree = asdict(cfg)
        elif self.name:
            tree = declared(self.name, cfg)
        elif cfg is None or isinstance(cfg, str | Path):
            return load_dataset_config(self.default_config_path() if cfg is None else cfg)
        else:
            tree = dict(cfg)
        tree.setdefault("data_type", "images")
        return OmegaConf.create(tree)

    @classmethod
    def default_config_path(cls, type: str = "default") -> str:
        """The YAML of a config type; raises ConfigError with the nearest names."""
        if type not in cls.DATASET_CONFIG_DICT:
            what = f"has no config type '{type}'"
            raise ConfigError(cls.__name__, what, nearest(type, cls.DATASET_CONFIG_DICT))
        return find_yaml(cls.DATASET_CONFIG_DICT[type])

    @classmethod
    def built_for(cls, config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
        """The wanted splits for a run, from the class's own YAML under what the run file says."""
        tree = asdict(config)
        args = tree.pop("args")
        more = args.pop("build_info", {})
        tree = {**merge(tree, args), "build_info": {**tree["build_info"], **more}}
        for kind in PROCESSORS:
            tree[kind] = {side: flat_processor(one) for side, one in tree[kind].items()}
        wanted = tree["build_info"]["annotations"]
        if context.splits is not None:
            tree["build_info"]["annotations"] = {k: v for k, v in wanted.items() if k in context.splits}
        with reading(f"datasets.{config.name}"):
            builder = cls(tree)
            builder._context = context
            built = {key: one for key, one in builder.build_datasets().items() if context.wants(key)}
        return {key: named(one, config, key) for key, one in built.items()}

    def build_datasets(self) -> dict[str, Dataset]:
        """{split: data set} of all splits whose files are there; only what a subclass defines is downloaded."""
        if is_main_process():
            self._download_data()
        return self.build()

    def _download_data(self) -> None:
        self._download_ann()
        self._download_vis()

    def _download_ann(self) -> None:
        """For a subclass: nothing here, where LAVIS fetches the annotations."""

    def _download_vis(self) -> None:
        """For a subclass: nothing here."""

    def build_processors(self) -> None:
        """Fill `vis_processors`, `text_processors` and `kw_processors` from the section."""
        for kind, held in zip(PROCESSORS, (self.vis_processors, self.text_processors), strict=True):
            section = self.config.get(kind) or {}
            held.update({side: self._build_proc_from_cfg(section[side]) for side in held if section.get(side)})
        for name, cfg in (self.config.get("kw_processor") or {}).items():
            self.kw_processors[name] = self._build_proc_from_cfg(cfg)

    @staticmethod
    def _build_proc_from_cfg(cfg: Any) -> Any:
        if cfg is None:
            return None
        flat = flat_processor(OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg)
        return load_processor(flat["name"], flat)

    def build(self) -> dict[str, Dataset]:
        """The data sets of the section as it is now; raises NotPreparedError that names what is missing."""
        from lavis_ext.datasets.builders.context import BuildContext

        context = self._context or BuildContext(cache_root())
        own = [self.train_dataset_cls, self.eval_dataset_cls]
        if not any(own):
            if not self.name and not self.config.get("builder"):
                way_out = "set train_dataset_cls and eval_dataset_cls, or define build()"
                raise ConfigError(type(self).__name__, "names no class of data sets", way_out)
            return build_datasets(self.declaration(), context)
        self.build_processors()
        return self._build_own(context)

    def _build_own(self, context: BuildContext) -> dict[str, Dataset]:
        from lavis_ext.datasets.builders.context import annotation_paths, build_each, not_prepared, with_storage_root

        config = with_storage_root(self.declaration())
        folder = context.cache_root / expanded(config.build_info.images.storage)
        if not folder.is_dir():
            log.warning("%s: there is no folder of images %s", config.name, folder)  # a class may need none

        def make(split: str) -> Any:
            side = "train" if split == "train" else "eval"
            kind = self.train_dataset_cls if split == "train" else self.eval_dataset_cls
            if kind is None:
                what = f"names no class for '{split}'"
                raise ConfigError(type(self).__name__, what, f"set {side}_dataset_cls, or leave the split out")
            paths = annotation_paths(config, split, context)
            for path in paths:
                if not path.is_file():
                    raise not_prepared(config, path, "no such annotation file")
            return kind(
                vis_processor=self.vis_processors[side],
                text_processor=self.text_processors[side],
                ann_paths=[str(path) for path in paths],
                vis_root=str(folder),
            )

        return {split: named(one, config, split) for split, one in build_each(config, context, make).items()}

    def declaration(self) -> DatasetConfig:
        """The section as it is now, typed; raises ConfigError with every mistake."""
        tree: Any = OmegaConf.to_container(self.config, resolve=True)
        if not self.name:
            tree = keep_unknown({"name": type(self).__name__, **tree})
        for split, paths in (shown_paths(self.name, tree.get("type", "default")) if self.name else {}).items():
            held = tree["build_info"]["annotations"].get(split) or {}
            if held.get("storage") == paths and held.get("artifact"):  # as shown: the card knows more about them
                held["storage"] = []
        decoder = ConfigDecoder()
        config = decoder.build(DatasetConfig, tree, f"datasets.{tree['name']}")
        decoder.close()
        assert config is not None
        return config


def builder_class(name: str) -> type[BaseDatasetBuilder]:
    """The builder of a data set that a card declares, called like LAVIS': `cfg` is optional. Raises UsageError."""
    load_cards().card_of(name)
    return _builder_class(name, tuple(sorted((k, str(v[1])) for k, v in dataset_defaults()[name].items())))


@cache
def _builder_class(name: str, files: tuple[tuple[str, str], ...]) -> type[BaseDatasetBuilder]:
    words = "".join(word.capitalize() for word in name.split("_"))
    about = {"name": name, "DATASET_CONFIG_DICT": dict(files), "__module__": __name__}
    return type(f"{words}Builder", (BaseDatasetBuilder,), about)


def declared(name: str, cfg: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """The section of a declared data set, with the paths of its annotations under `storage`.

    Processors are those that `cfg` or a card of the user's names: without, pictures are PIL images and texts raw, as
    in LAVIS. What the shipped cards name is for runs, but for data sets of instructions.
    """
    tree = beside(read_yaml(Path(cfg))[0], Path(cfg).parent) if isinstance(cfg, str | Path) else {}
    sections = tree.get("datasets") or {}
    if isinstance(cfg, str | Path) and not sections:
        raise ConfigError(str(cfg), "declares no data set", "write `datasets:` and the name of one under it")
    chosen = name if name in sections or not sections else next(iter(sections))
    given: Any = sections[chosen] or {} if sections else {}
    if isinstance(cfg, Mapping):
        given = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else dict(cfg)
    kind = str(given.get("type", "default"))
    types = dataset_defaults().get(chosen, {})
    default, file, _ = types.get(kind, ({}, Path(), {}))
    if types and kind not in types:
        raise ConfigError(f"data set '{chosen}'", f"has no type '{kind}'", nearest(kind, types))
    shipped = file.is_relative_to(config_roots()[-1])
    asks = any(key in default.get("args", {}) for key in ("instruct", "prompt"))  # its processor makes the instruction
    kept = {key: value for key, value in default.items() if not (shipped and key in PROCESSORS and not asks)}
    section = {"name": chosen, **merge(kept, given)}
    if types:
        section.setdefault("family", load_cards().card_of(chosen).family)
        for split, paths in shown_paths(chosen, kind).items():
            held = section["build_info"]["annotations"].setdefault(split, {})
            held["storage"] = held.get("storage") or paths
    return section


def shown_paths(name: str, kind: str) -> dict[str, list[str]]:
    """The annotation files of each split as a card declares them, below cache_root."""
    cards = load_cards()
    config = cards.dataset(name, kind) if name in cards.names() else None
    return {split: cards.annotation_paths(config, split) for split in config.build_info.annotations} if config else {}


def load_dataset_config(cfg_path: str | Path) -> DictConfig:
    """The first section under `datasets:` of a YAML, as a node (LAVIS' function)."""
    sections = read_yaml(Path(cfg_path))[0].get("datasets") or {}
    if not sections:
        raise ConfigError(str(cfg_path), "declares no data set", "write `datasets:` and the name of one under it")
    name, body = next(iter(sections.items()))
    return OmegaConf.create({"data_type": "images", "name": name, **(body or {})})


def flat_processor(cfg: Any) -> Any:
    """LAVIS' flat form of a processor's section: the name and its arguments side by side."""
    return {"name": cfg["name"], **cfg["args"]} if isinstance(cfg, Mapping) and "args" in cfg else cfg


def named(dataset: Any, config: DatasetConfig, split: str) -> Any:
    """What a class in LAVIS' manner made, with its name, split and limits; another library's can then be loaded."""
    from lavis_ext.datasets.datasets.base_dataset import ItemDataset

    made = dataset if hasattr(dataset, "load") or hasattr(dataset, "iterate") else ItemDataset(dataset)
    if hasattr(type(made), "parts_named"):
        made.parts_named(config, split)
    return made
