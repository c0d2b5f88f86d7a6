"""The shape `region_retrieval`: pairs that match or do not, and images and captions to rank; Oscar's COCO IR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Batch, Dataset, Sample
from lavis_ext.datasets.builders.context import BuildContext
from lavis_ext.datasets.datasets.base_dataset import draw_below
from lavis_ext.datasets.readers.annotations import Annotations
from lavis_ext.datasets.readers.parse import Row
from lavis_ext.oscar.datasets.base import listed, region_rows
from lavis_ext.oscar.datasets.caption import (
    CaptionFile,
    CaptionRows,
    PerCaption,
    caption_file,
    of_split,
    other_than,
    read_candidates,
    read_keys,
)
from lavis_ext.oscar.datasets.opening import Opening, RegionParts, region_splits
from lavis_ext.oscar.datasets.regions import Ids
from lavis_ext.oscar.datasets.settings import RegionRetrievalKeys


@builders.register("region_retrieval", config=RegionRetrievalKeys)
def region_retrieval(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """`{split}_captions.pt`; tags from `{split}_vg_labels.pt` beside it (Oscar's zip), else from the store (VinVL)."""
    return region_splits(config, context, _make)


def _make(opening: Opening) -> Dataset:
    args, paths, regions = opening.args, opening.files(), opening.regions()
    folder, files = paths[0].parent, [caption_file(path, str(args["od_label_type"])) for path in paths]
    if args["add_od_labels"] and any(len(store) and store.at(0).label_text for store in regions.stores):
        require_one_form(opening, [file.tags for file in files if isinstance(file, CaptionFile) and file.tags])
    parts = RegionParts(opening.config, opening.split, Annotations(files), args, regions, opening.encoder())
    if parts.training:
        return RegionPairsDataset(parts)
    named = (
        of_split(args["eval_img_keys_file"], opening.split, "test"),
        of_split(args["eval_caption_index_file"], opening.split, "val"),
    )
    return RegionRankingDataset(parts, *(None if name is None else opening.beside(folder, name) for name in named))


def require_one_form(opening: Opening, beside: Sequence[Path]) -> None:
    """Raise ConfigError where the features have tags of their own (VinVL) and the captions a file of them (Oscar).

    Upstream takes those of the features. Which are meant cannot be seen, and nothing else would show the mistake.
    """
    if beside:
        what = f"has tags of its own, and {beside[0]} holds those of another detector: two forms are mixed"
        way_out = "set the data set's `type: vinvl`, name features without tags, or remove the file"
        raise ConfigError(f"datasets.{opening.config.name}.args.features {opening.split}", what, way_out)


@dataclass(frozen=True, eq=False)
class RegionPairsDataset(PerCaption):
    """A caption with its image, and a pair that does not match: training."""

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """Two inputs, `labels` 1 and 0: the pair, then with even chances another image's caption, or another image.

        The other image is never this one, and comes with its own tags.
        """
        image, _ = self.image_of(self.position(index))
        other = self.rows[other_than(image, len(self.rows), rng)]
        own, place = row["caption"], self.place(row["image_id"], index)
        strange = self.caption_of(other, rng)
        pairs = [(own, row, place)]
        if draw_below(2, rng):
            pairs.append((strange, row, place))
        else:
            pairs.append((own, other, self.place(other["image_id"], index)))
        words = self.parts.encoder.words
        encoded = [self.parts.encoder.caption(words.encode(text), self.tags(of, at)) for text, of, at in pairs]
        return {
            "input_ids": [ids for ids, _ in encoded],
            "token_type_ids": [types for _, types in encoded],
            "regions": [at for _, _, at in pairs],
            "labels": [1, 0],
            "image_id": row["image_id"],
            "instance_id": row["instance_id"],
        }

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Both inputs of each sample in a row: [2B,T], [2B,T+R], [2B,R,D], `labels` int64 [2B]; ids of length B."""
        labels = [label for sample in samples for label in sample["labels"]]
        return {**super().collater(samples), "labels": torch.tensor(labels)}


@dataclass(frozen=True, eq=False)
class RegionRankingDataset(CaptionRows):
    """An image a sample; its captions are in `captions`, to be joined to it by `encode_pair`.

    `img_keys_file` names the images in use, in its order; `caption_index_file` the captions that each is ranked with.
    """

    img_keys_file: Path | None = None
    caption_index_file: Path | None = None

    @cached_property
    def used(self) -> list[int]:
        """The rows in use; raises IntegrityError where the file of keys names an image that has none."""
        if self.img_keys_file is None:
            return list(range(len(self.rows)))
        known = {str(key): number for number, key in enumerate(self.rows.column("image_id"))}
        keys = read_keys(self.img_keys_file)
        strange = next((key for key in keys if key not in known), None)
        if strange is not None:
            files = ", ".join(map(str, self.rows.paths))
            raise IntegrityError(str(self.img_keys_file), f"names image '{strange}', of which {files} has no captions")
        return [known[key] for key in keys]

    def count(self) -> int:
        """How many images."""
        return len(self.used)

    def row(self, index: int) -> Row:
        """The captions of an image."""
        row: Row = self.rows[self.used[self.position(index)]]
        return row

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """`regions`, `tag_ids` (a list), `image_id`, `index`."""
        place = self.place(row["image_id"], index)
        found: Sample = {"regions": place, "tag_ids": self.tags(row, place), "image_id": row["image_id"]}
        return {**found, "index": self.position(index), "instance_id": str(self.position(index))}

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """`img_feats` float32 [B,R,D], `img_mask` int64 [B,R]; `tag_ids`, `image_id`, `index`, `instance_id` lists."""
        places: list[Any] = [sample.get("regions", sample.get("img_feats")) for sample in samples]
        feats, mask = region_rows(places, self.parts.regions)
        keys = ("tag_ids", "image_id", "index", "instance_id")
        return {"img_feats": feats, "img_mask": mask, **listed(samples, keys)}

    @cached_property
    def _texts(self) -> list[list[str]]:
        return [self.row(index)["captions"][: self.per_image] for index in range(len(self))]

    @cached_property
    def captions(self) -> list[Ids]:
        """The token ids of all captions, by image, without special tokens."""
        texts = [text for texts in self._texts for text in texts]
        return self.parts.encoder.words.encode_all(texts)

    @cached_property
    def caption_image(self) -> np.ndarray:
        """int64 [captions]: the index of each caption's image."""
        return np.repeat(np.arange(len(self)), [len(texts) for texts in self._texts])

    @cached_property
    def caption_keys(self) -> list[tuple[Any, int]]:
        """(image id, number among its captions) of each."""
        ids = [self.row(index)["image_id"] for index in range(len(self))]
        return [
            (image_id, number) for image_id, own in zip(ids, self._texts, strict=True) for number in range(len(own))
        ]

    @cached_property
    def _lists(self) -> list[np.ndarray] | None:
        """The numbers of the captions that each image is ranked with."""
        if self.caption_index_file is None:
            return None
        known = {(str(key), number): at for at, (key, number) in enumerate(self.caption_keys)}
        given = read_candidates(self.caption_index_file)
        names = [str(self.row(index)["image_id"]) for index in range(len(self))]
        try:
            # with `max_samples` the captions of images that are not in use are no candidates
            wanted = [[known.get(pair) for pair in given[name]] for name in names]
        except KeyError as error:
            raise IntegrityError(str(self.caption_index_file), f"has no candidates for image {error}") from None
        if self.parts.limit is None and any(None in one for one in wanted):
            raise IntegrityError(str(self.caption_index_file), "names captions that are not there")
        return [np.array([at for at in one if at is not None], np.int64) for one in wanted]

    def candidates(self, index: int) -> np.ndarray | None:
        """int64: the captions that an image is ranked with, by their numbers in `captions`; None: all."""
        return None if self._lists is None else self._lists[self.position(index)]

    def encode_pair(self, caption: Ids, tags: Ids) -> dict[str, Ids]:
        """`input_ids` and `token_type_ids` of a caption and an image's tags."""
        ids, types = self.parts.encoder.caption(caption, tags)
        return {"input_ids": ids, "token_type_ids": types}
