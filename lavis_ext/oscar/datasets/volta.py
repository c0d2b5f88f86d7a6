"""The shapes `volta_caption` and `volta_retrieval`: COCO's captions with `features` and `locs` as volta has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import IntegrityError, UsageError
from lavis_ext.common.files import read_errors, read_file
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Batch, Dataset, Sample
from lavis_ext.datasets.builders.context import BuildContext, not_prepared
from lavis_ext.datasets.datasets.base_dataset import draw_below
from lavis_ext.datasets.readers.annotations import Annotations
from lavis_ext.datasets.readers.parse import Row
from lavis_ext.features.formats.restricted import load_plain
from lavis_ext.features.layout import Array, key_of
from lavis_ext.oscar.datasets.base import RegionDataset, listed, mask_rows, pad_rows, stacked
from lavis_ext.oscar.datasets.caption import PerCaption, caption_file, other_than
from lavis_ext.oscar.datasets.opening import Opening, RegionParts, region_splits
from lavis_ext.oscar.datasets.regions import RegionPlace, RegionStores, box_columns
from lavis_ext.oscar.datasets.retrieval import RegionRankingDataset
from lavis_ext.oscar.datasets.settings import VoltaKeys
from lavis_ext.oscar.volta.coco import feature_folder, find_rows, find_serialised

OPTIONS = 4
TRIES = 16
"""Draws after which any other image is taken as the hard negative."""


@builders.register("volta_caption", config=VoltaKeys)
def volta_caption(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """`{split}_ann.jsonl`: `train` gives one caption a sample, every other split one image."""
    return region_splits(config, context, _make_captions)


@builders.register("volta_retrieval", config=VoltaKeys)
def volta_retrieval(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """`train` gives four pairs of which the first matches, every other split images and captions to rank."""
    return region_splits(config, context, _make_retrieval)


def _make_captions(opening: Opening) -> Dataset:
    parts = _parts(opening)
    return VoltaCaptionDataset(parts) if parts.training else VoltaRankingDataset(parts)


def _make_retrieval(opening: Opening) -> Dataset:
    parts = _parts(opening)
    if not parts.training:
        return VoltaRankingDataset(parts)
    name = opening.args["hard_negatives"]
    path = None if name is None else opening.path(name)
    if path is not None and not path.is_file():
        way_out = "run `lavis-ext prepare mscoco/hard_negative`, or set args.hard_negatives: null"
        raise not_prepared(opening.config, path, f"no hard negatives; {way_out}")
    return VoltaRetrievalDataset(parts, None if path is None else read_pool(path))


def _parts(opening: Opening) -> RegionParts:
    rows = Annotations(caption_file(path, "") for path in opening.files())
    files = None if opening.given else feature_files(opening)
    regions = opening.regions(files, boxed=True)
    return RegionParts(opening.config, opening.split, rows, opening.args, regions, opening.encoder())


def feature_files(opening: Opening) -> list[Path]:
    """The store or LMDB that volta's steps made of train2014 and val2014, else the rows of both; NotPreparedError."""
    root = opening.context.cache_root
    found = find_serialised(root, "trainval")
    if found is not None:
        return [found]
    folder = feature_folder(root)
    try:
        return [find_rows(folder, split) for split in ("train", "valid")]
    except UsageError as error:
        raise not_prepared(opening.config, folder, f"no region features: {error.problems[0].what}") from error


@dataclass(frozen=True)
class Pool:
    """volta's `hard_negative.pkl`: `near[i]` are the images most like image i, by their numbers in `ids`, i first."""

    ids: tuple[str, ...]
    near: Array

    @cached_property
    def places(self) -> dict[str, int]:
        """Key of an id → its number."""
        return {key_of(image_id): number for number, image_id in enumerate(self.ids)}


def read_pool(path: Path) -> Pool:
    """The pickle, by the restricted reader; raises UnsafeError, IntegrityError."""
    with read_errors(path):
        data = read_file(path)
    value = load_plain(data, str(path))
    found = value if isinstance(value, dict) else {}
    ids, near = found.get("train_image_list"), found.get("train_hard_pool")
    if ids is None or near is None:
        raise IntegrityError(str(path), "has no train_image_list and train_hard_pool", "fetch it again")
    try:
        table = np.asarray(near, np.int64)
    except (TypeError, ValueError) as error:
        raise IntegrityError(str(path), f"its train_hard_pool is no table of numbers: {error}", "") from error
    if table.ndim != 2 or len(table) != len(ids) or table.shape[1] < 2 or table.min() < 0 or table.max() >= len(ids):
        raise IntegrityError(str(path), f"its pool {table.shape} does not fit {len(ids)} images", "fetch it again")
    return Pool(tuple(str(image_id) for image_id in ids), table)


@dataclass(frozen=True, eq=False)
class VoltaDataset(RegionDataset):
    """Samples and batches with `features` [n,2048] and `locs` [n,5 or 7] instead of `img_feats`."""

    # named again: a class with a `__getitem__` of its own and no `load` is read through the former
    load = RegionDataset.load

    def __getitem__(self, index: int) -> Sample:
        """The sample with `features` and `locs` (or lists of them) instead of `regions`. Raises SampleError."""
        sample = self.fields(self.row(index), index, None)
        place = sample.pop("regions")
        several = not isinstance(place, RegionPlace)
        found = [volta_rows(self.parts.regions, one, self.parts.args) for one in (place if several else [place])]
        features, locs = ([torch.from_numpy(array) for array in arrays] for arrays in zip(*found, strict=True))
        return {**sample, "features": features if several else features[0], "locs": locs if several else locs[0]}

    def images(self, samples: Sequence[Sample]) -> Batch:
        """`features` float32 [N,R,2048], `locs` float32 [N,R,5 or 7], `image_mask` int64 [N,R] of all inputs."""
        rows = [one for sample in samples for one in self._rows(sample)]
        counts = [len(features) for features, _ in rows]
        mask = mask_rows(counts, least=1)
        out = [np.zeros((*mask.shape, width), np.float32) for width in (2048, self.parts.args["num_locs"])]
        for number, both in enumerate(rows):
            for whole, part in zip(out, both, strict=True):
                whole[number, : len(part)] = part
        return {"features": torch.from_numpy(out[0]), "locs": torch.from_numpy(out[1]), "image_mask": mask}

    def _rows(self, sample: Sample) -> list[tuple[Array, Array]]:
        """The arrays of a sample as `load` or as `[]` gives it."""
        place: Any = sample.get("regions")
        if place is None:
            features, locs = sample["features"], sample["locs"]
            both = [(features, locs)] if isinstance(features, Tensor) else list(zip(features, locs, strict=True))
            return [(one.numpy(), other.numpy()) for one, other in both]
        known: dict[RegionPlace, tuple[Array, Array]] = {}
        places = [place] if isinstance(place, RegionPlace) else place
        for one in places:
            if one not in known:
                known[one] = volta_rows(self.parts.regions, one, self.parts.args)
        return [known[one] for one in places]

    def texts(self, samples: Sequence[Sample]) -> Batch:
        """`input_ids`, `token_type_ids`, `input_mask` int64 [N,T] of all inputs."""
        rows = [ids for sample in samples for ids in _nested(sample["input_ids"])]
        types = [ids for sample in samples for ids in _nested(sample["token_type_ids"])]
        padded = {"input_ids": pad_rows(rows, self.pad), "token_type_ids": pad_rows(types, 0)}
        return {**padded, "input_mask": mask_rows([len(ids) for ids in rows])}


@dataclass(frozen=True, eq=False)
class VoltaCaptionDataset(VoltaDataset, PerCaption):
    """A caption and its image: training."""

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """`input_ids`, `token_type_ids`, `regions`, `text_input` (the caption as it is), ids."""
        ids, types = self.parts.encoder.pair(row["caption"], "")
        found: Sample = {"input_ids": ids, "token_type_ids": types, "text_input": row["caption"]}
        found["regions"] = self.place(row["image_id"], index)
        return {**found, "image_id": row["image_id"], "instance_id": row["instance_id"]}

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Texts, images, and `attention_mask` int64 [B,T+R] over both; `text_input` and ids as lists."""
        batch = {**self.texts(samples), **self.images(samples)}
        batch["attention_mask"] = torch.cat([batch["input_mask"], batch["image_mask"]], 1)
        return {**batch, **listed(samples, ("text_input", *self.ids))}


@dataclass(frozen=True, eq=False)
class VoltaRetrievalDataset(VoltaDataset, PerCaption):
    """Four pairs: the right one; another image's caption; another image; a caption of an image like this one."""

    pool: Pool | None = None

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Key of an image's id → its row."""
        return {key_of(str(image_id)): number for number, image_id in enumerate(self.rows.column("image_id"))}

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """Lists of four: `input_ids`, `token_type_ids`, `regions`; `labels` 0, and ids.

        Every caption is drawn among those of its own image; upstream's numbers begin at 0 for each image, so that its
        negatives came from the first images alone (volta/datasets/retrieval_dataset.py since 467404c).
        """
        image, _ = self.image_of(self.position(index))
        others = [self.rows[other_than(image, len(self.rows), rng)] for _ in range(2)]
        near = self.rows[self.hard(image, rng)]
        own, place = row["caption"], self.place(row["image_id"], index)
        texts = [own, self.caption_of(others[0], rng), own, self.caption_of(near, rng)]
        encoded = [self.parts.encoder.pair(text, "") for text in texts]
        return {
            "input_ids": [ids for ids, _ in encoded],
            "token_type_ids": [types for _, types in encoded],
            "regions": [place, place, self.place(others[1]["image_id"], index), place],
            "labels": 0,
            "image_id": row["image_id"],
            "instance_id": row["instance_id"],
        }

    def hard(self, image: int, rng: torch.Generator | None) -> int:
        """The row of an image like this one; of any other where the pool has none that is in these rows."""
        pool = self.pool
        number = None if pool is None else pool.places.get(key_of(str(self.rows[image]["image_id"])))
        if pool is not None and number is not None:
            near = pool.near[number, 1:]
            for _ in range(TRIES):
                drawn = pool.ids[int(near[draw_below(len(near), rng)])]
                found = self._numbers.get(key_of(drawn), image)
                if found != image:
                    return found
        return other_than(image, len(self.rows), rng)

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Texts [B,4,T] and images [B,4,R,…], `attention_mask` [B,4,T+R], `labels` int64 [B] (all 0), ids as lists."""
        flat = {**self.texts(samples), **self.images(samples)}
        flat["attention_mask"] = torch.cat([flat["input_mask"], flat["image_mask"]], 1)
        batch = {key: stacked(value, OPTIONS) for key, value in flat.items()}
        labels = torch.tensor([sample["labels"] for sample in samples])
        return {**batch, "labels": labels, **listed(samples, self.ids)}


@dataclass(frozen=True, eq=False)
class VoltaRankingDataset(VoltaDataset, RegionRankingDataset):
    """An image a sample; captions aside in `captions`, as in `region_retrieval`, and in `references()`."""

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """`features`, `locs`, `image_mask`; `image_id`, `index`, `instance_id` as lists."""
        return {**self.images(samples), **listed(samples, ("tag_ids", "image_id", "index", "instance_id"))}

    def references(self) -> dict[int | str, list[str]]:
        """Captions by image id for the images in use."""
        rows = (self.row(index) for index in range(len(self)))
        return {row["image_id"]: list(row["captions"]) for row in rows}


def volta_rows(regions: RegionStores, place: RegionPlace, args: Any) -> tuple[Array, Array]:
    """`features` float32 [n,2048] and `locs` float32 [n,5 or 7] of an image, with the whole image where it is wanted.

    The whole image is the mean of its regions at [0, 0, 1, 1, 1] (volta/datasets/_image_features_reader.py).
    """
    features, six = regions.array(place), box_columns(regions.record(place))[: place.size]
    area = six[:, 4:5] * six[:, 5:6]
    locs = np.concatenate([six[:, :4], *([six[:, 4:6]] if args["num_locs"] == 7 else []), area], 1)
    if args["add_global_imgfeat"] is not None:
        mean = features.mean(0, keepdims=True) if len(features) else np.zeros((1, regions.columns), np.float32)
        whole = np.ones((1, locs.shape[1]), np.float32)
        whole[:, :2] = 0
        parts = ((mean, features), (whole, locs))
        first = args["add_global_imgfeat"] == "first"
        features, locs = (np.concatenate(both if first else both[::-1]) for both in parts)
    if args["norm_embeddings"]:
        features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return features, locs.astype(np.float32)


def _nested(ids: list[Any]) -> list[list[int]]:
    """The ids of one input as a list of one, those of several as they are."""
    return ids if ids and isinstance(ids[0], list) else [ids]
