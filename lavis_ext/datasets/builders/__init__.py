"""Data sets by name: a declaration becomes {split: data set} through the shape that it names."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.errors import DATASETS, UsageError, near
from lavis_ext.common.files import expanded, is_pathlike
from lavis_ext.common.registry import registry
from lavis_ext.common.types import Dataset

if TYPE_CHECKING:
    from lavis_ext.datasets.builders.base_dataset_builder import (
        BaseDatasetBuilder,
        build_datasets,
        builder_class,
        load_dataset_config,
    )
    from lavis_ext.datasets.builders.context import BuildContext, NotPreparedError

    AOKVQABuilder: type[BaseDatasetBuilder]
    COCOCapBuilder: type[BaseDatasetBuilder]
    COCORetrievalBuilder: type[BaseDatasetBuilder]
    COCOVQABuilder: type[BaseDatasetBuilder]
    ConceptualCaption12MBuilder: type[BaseDatasetBuilder]
    ConceptualCaption3MBuilder: type[BaseDatasetBuilder]
    Flickr30kBuilder: type[BaseDatasetBuilder]
    Flickr30kCapBuilder: type[BaseDatasetBuilder]
    GQABuilder: type[BaseDatasetBuilder]
    Laion2BMultiBuilder: type[BaseDatasetBuilder]
    Laion400MBuilder: type[BaseDatasetBuilder]
    NLVRBuilder: type[BaseDatasetBuilder]
    NoCapsBuilder: type[BaseDatasetBuilder]
    OKVQABuilder: type[BaseDatasetBuilder]
    SBUCaptionBuilder: type[BaseDatasetBuilder]
    SNLIVisualEntailmentBuilder: type[BaseDatasetBuilder]
    VGCaptionBuilder: type[BaseDatasetBuilder]
    VGVQABuilder: type[BaseDatasetBuilder]


@overload
def load_dataset(
    name: str | Path,
    cfg_path: str | Path | None = ...,
    vis_path: str | Path | None = ...,
    data_type: str | None = ...,
    *,
    split: None = ...,
) -> dict[str, Dataset]: ...


@overload
def load_dataset(
    name: str | Path,
    cfg_path: str | Path | None = ...,
    vis_path: str | Path | None = ...,
    data_type: str | None = ...,
    *,
    split: str,
) -> Dataset: ...


def load_dataset(
    name: str | Path,
    cfg_path: str | Path | None = None,
    vis_path: str | Path | None = None,
    data_type: str | None = None,
    *,
    split: str | None = None,
) -> dict[str, Dataset] | Dataset:
    """LAVIS' function: `load_dataset("coco_caption")["val"][0]`; or of a path, `load_dataset("~/photos")["train"][0]`.

    It gives a dict of splits, which prints as a table; with `split="val"` that one. A file or folder of one's own is
    taken for what it looks like, and what was guessed is logged (`datasets/own.py`).

    `cfg_path` is a YAML with a `datasets:` section (the first in it is taken unless `name` is there), `vis_path`
    replaces the folder of the pictures; `data_type` can only be `images`. Without processors in that YAML, or in a card
    of the user's own, pictures are PIL images and texts raw. Raises UsageError for an unknown name.
    """
    from lavis_ext.datasets.builders.base_dataset_builder import BaseDatasetBuilder

    name = str(name)
    if data_type not in (None, "images"):
        raise UsageError(f"load_dataset('{name}')", f"data_type '{data_type}' is not read here", "leave it out")
    there = isinstance(cfg_path, str) and os.path.exists(expanded(cfg_path))  # noqa: PTH110 - of any text, without an error
    if isinstance(cfg_path, str) and not Path(cfg_path).suffix and not there:
        what = f"'{cfg_path}' is no YAML, which the second argument names"
        way_out = f"write load_dataset('{name}')['{cfg_path}'] for a split" if name in dataset_zoo.get_names() else ""
        raise UsageError(
            f"load_dataset('{name}', '{cfg_path}')", what, way_out or near(name, dataset_zoo.get_names()) or DATASETS
        )
    if cfg_path is None and name not in dataset_zoo.get_names():
        from lavis_ext.datasets.own import load_own, place_of

        if is_pathlike(name) or place_of(name):
            return of_split(name, load_own(name, vis_path), split)
    declared = cfg_path is None or name in dataset_zoo.get_names()
    kind = registry.get_builder_class(name) if declared else type("Builder", (BaseDatasetBuilder,), {"name": name})
    builder = kind(cfg_path)
    if vis_path is not None:
        builder.config.build_info.setdefault("images", {})
        builder.config.build_info.images.storage = str(expanded(vis_path).absolute())
    return of_split(name, builder.build_datasets(), split, builder.config.build_info.get("annotations") or ())


def of_split(
    name: str, found: Mapping[str, Dataset], split: str | None, declared: Container[str] = ()
) -> dict[str, Dataset] | Dataset:
    """All splits, as a dict that prints as a table, or one of them.

    Raises NoSplit with the nearest names, NotPreparedError for one that is declared and not here.
    """
    from lavis_ext.datasets.builders.context import NotPreparedError
    from lavis_ext.datasets.view import Splits

    splits = Splits(name, found)
    if split is not None and split not in splits and split in declared:
        raise NotPreparedError(f"{name}/{split}", "its files are not here", f"run `lavis-ext prepare {name}`")
    one: Dataset = splits if split is None else splits[split]  # type: ignore[assignment]
    return one


class DatasetZoo:
    """The data sets by name with their config types, as they are when it is asked (LAVIS' `dataset_zoo`)."""

    @property
    def dataset_zoo(self) -> dict[str, list[str]]:
        """Name → config types."""
        kinds: dict[str, Any] = {name: registry.get_builder_class(name) for name in self.get_names()}
        return {name: list(kind.DATASET_CONFIG_DICT) for name, kind in kinds.items()}

    def get_names(self) -> list[str]:
        """All names, sorted."""
        return registry.list_datasets()


dataset_zoo = DatasetZoo()


def names() -> list[str]:
    """The names of all data sets that a card declares."""
    return load_cards().names()


LAVIS_BUILDERS = {
    "AOKVQABuilder": "aok_vqa",
    "AOKVQAInstructBuilder": "aok_vqa_instruct",
    "COCOCapBuilder": "coco_caption",
    "COCOCapInstructBuilder": "coco_caption_instruct",
    "COCORetrievalBuilder": "coco_retrieval",
    "COCOVQABuilder": "coco_vqa",
    "COCOVQAInstructBuilder": "coco_vqa_instruct",
    "ConceptualCaption12MBuilder": "conceptual_caption_12m",
    "ConceptualCaption12MInstructBuilder": "conceptual_caption_12m_instruct",
    "ConceptualCaption3MBuilder": "conceptual_caption_3m",
    "ConceptualCaption3MInstructBuilder": "conceptual_caption_3m_instruct",
    "Flickr30kBuilder": "flickr30k",
    "Flickr30kCapBuilder": "flickr30k_caption",
    "Flickr30kCapInstructBuilder": "flickr30k_caption_instruct",
    "GQABuilder": "gqa",
    "GQAInstructBuilder": "gqa_instruct",
    "Laion2BMultiBuilder": "laion2B_multi",
    "Laion400MBuilder": "laion400M",
    "Laion400MInstructBuilder": "laion400M_instruct",
    "NLVRBuilder": "nlvr",
    "NoCapsBuilder": "nocaps",
    "OKVQABuilder": "ok_vqa",
    "OKVQAInstructBuilder": "ok_vqa_instruct",
    "SBUCaptionBuilder": "sbu_caption",
    "SBUCaptionInstructBuilder": "sbu_caption_instruct",
    "SNLIVisualEntailmentBuilder": "snli_ve",
    "SNLIVisualEntailmentInstructBuilder": "snli_ve_instruct",
    "VGCaptionBuilder": "vg_caption",
    "VGCaptionInstructBuilder": "vg_caption_instruct",
    "VGVQABuilder": "vg_vqa",
    "VGVQAInstructBuilder": "vg_vqa_instruct",
}
"""LAVIS' class names → the data sets that they build."""
__all__ = [
    "AOKVQABuilder",
    "AOKVQAInstructBuilder",
    "BaseDatasetBuilder",
    "BuildContext",
    "COCOCapBuilder",
    "COCOCapInstructBuilder",
    "COCORetrievalBuilder",
    "COCOVQABuilder",
    "COCOVQAInstructBuilder",
    "ConceptualCaption3MBuilder",
    "ConceptualCaption3MInstructBuilder",
    "ConceptualCaption12MBuilder",
    "ConceptualCaption12MInstructBuilder",
    "Flickr30kBuilder",
    "Flickr30kCapBuilder",
    "Flickr30kCapInstructBuilder",
    "GQABuilder",
    "GQAInstructBuilder",
    "Laion2BMultiBuilder",
    "Laion400MBuilder",
    "Laion400MInstructBuilder",
    "NLVRBuilder",
    "NoCapsBuilder",
    "NotPreparedError",
    "OKVQABuilder",
    "OKVQAInstructBuilder",
    "SBUCaptionBuilder",
    "SBUCaptionInstructBuilder",
    "SNLIVisualEntailmentBuilder",
    "SNLIVisualEntailmentInstructBuilder",
    "VGCaptionBuilder",
    "VGCaptionInstructBuilder",
    "VGVQABuilder",
    "VGVQAInstructBuilder",
    "build_datasets",
    "builder_class",
    "dataset_zoo",
    "load_dataset",
    "load_dataset_config",
    "names",
]


def __getattr__(name: str) -> Any:
    """Import what builds, and opens files, only on use: it needs pyarrow, and reading the keys of a shape does not."""
    if name not in __all__:
        raise AttributeError(f"module 'lavis_ext.datasets.builders' has no attribute '{name}'")
    if name in ("BuildContext", "NotPreparedError"):
        return getattr(import_module("lavis_ext.datasets.builders.context"), name)
    base = import_module("lavis_ext.datasets.builders.base_dataset_builder")
    return base.builder_class(LAVIS_BUILDERS[name]) if name in LAVIS_BUILDERS else getattr(base, name)
