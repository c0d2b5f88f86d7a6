"""The shape `image_caption`: a picture and its caption; COCO, NoCaps, Visual Genome, SBU, MiniGPT-4 and their like."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Dataset, Sample
from lavis_ext.datasets.builders.context import BuildContext, SplitParts, build_splits
from lavis_ext.datasets.builders.settings import CaptionKeys
from lavis_ext.datasets.datasets.base_dataset import (
    ImageTextDataset,
    PictureDataset,
    draw_below,
    instruction,
    two_ways,
)
from lavis_ext.datasets.readers.annotations import ListRows
from lavis_ext.datasets.readers.parse import Row

log = logging.getLogger(__name__)


@builders.register("image_caption", config=CaptionKeys)
def image_caption(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """`train` gives one sample a caption, every other split one a picture."""
    return build_splits(config, context, _make)


def _make(parts: SplitParts) -> Dataset:
    return CaptionDataset(parts) if parts.training else CaptionEvalDataset(parts)


@two_ways
@dataclass(frozen=True, eq=False)
class CaptionDataset(ImageTextDataset):
    """One caption and its picture a sample: `image`, `text_input`, [`text_output`,] `image_id`, `instance_id`."""

    Keys = CaptionKeys
    derived = ("image_ids",)

    @property
    def text_processor(self) -> Any:
        """The text processor, or None."""
        return None if self.parts.args["raw_caption"] else self.parts.text_processor

    @text_processor.setter
    def text_processor(self, processor: Any) -> None:
        self._change(text_processor=processor)

    @cached_property
    def image_ids(self) -> np.ndarray:
        """int64 [rows]: LAVIS' running number of each row's picture."""
        codes: np.ndarray = self.rows.codes(self._picture_key())
        return codes

    @cached_property
    def img_ids(self) -> dict[Any, int]:
        """The running number of each picture by its id (LAVIS' attribute), as the rows were at first."""
        return dict(zip(self.rows.column(self._picture_key()), self.image_ids.tolist(), strict=True))

    def remember(self) -> None:
        """Keep the numbers of the pictures: rows that a script leaves keep theirs, as in LAVIS."""
        _ = self.img_ids

    def running_id(self, row: Row, index: int) -> int:
        """The running number of a row's picture; one that a script has added gets the next."""
        if isinstance(self.rows, ListRows):
            return self.img_ids.setdefault(row.get("image_id", self.image_name(row)), len(self.img_ids))
        return int(self.image_ids[self.position(index)])

    def _picture_key(self) -> str:
        return "image_id" if self.rows.has("image_id") else str(self.parts.args["image_key"])

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """Caption and ids; of several captions in one row, one is drawn."""
        caption = row.get(self.parts.args["caption_key"])
        if isinstance(caption, list) and caption:
            caption = caption[draw_below(len(caption), rng)]
        raw = self.parts.args["image_id"] == "raw"
        if raw and "image_id" not in row:
            raise self.fault(index, "image_id is missing, which `args: {image_id: raw}` keeps")
        ids: Sample = {
            "image_id": row["image_id"] if raw else self.running_id(row, index),
            "instance_id": row["instance_id"],
        }
        return {**self._texts(self.processed(caption, "caption", index), rng), **ids}

    def _texts(self, caption: str, rng: torch.Generator | None) -> Sample:
        """The caption, or its two parts: cut before a word of the first half (VPGTrans); the prefix may be empty.

        With `instruct` it is learnt after an instruction, which the text processor makes.
        """
        if self.parts.args["instruct"]:
            return {"text_input": instruction(self.text_processor), "text_output": caption}
        if not self.parts.args["prefix_split"]:
            return {"text_input": caption}
        words = caption.split(" ")
        point = draw_below(len(words) // 2 + 1, rng)
        return {"text_input": " ".join(words[:point]), "text_output": " ".join(words[point:])}


@two_ways
@dataclass(frozen=True, eq=False)
class CaptionEvalDataset(PictureDataset):
    """One picture a sample: `image`, `image_id`, `instance_id`; its captions are `references()`."""

    Keys = CaptionKeys

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """The ids."""
        return {"image_id": self.sample_image_id(row), "instance_id": str(self.position(index))}

    def sample_image_id(self, row: Row) -> int | str:
        """The id of result files; the digits of a file's name where these are its number, as LAVIS has them."""
        found = self.image_id(row)
        return digits_of(name) if found == number_of(name := self.image_name(row)) else found

    def image_id(self, row: Row) -> int | str:
        """The id of result files, by the first way of `WAYS` that gives each picture of the split an id of its own."""
        return self._id(row, self._way)

    def _id(self, row: Row, way: str) -> int | str:
        found = WAYS[way](row, self.image_name(row))
        return self.image_name(row) if found is None else found

    @property
    def _way(self) -> str:
        """How pictures get their ids; raises ConfigError where two pictures have one id of the file's own."""
        now = self.first_rows
        way: str
        seen, way = vars(self).get("_chosen_way", (None, ""))
        if seen is not now:
            way = self._choose_way()
            vars(self)["_chosen_way"] = (now, way)
        return way

    def _choose_way(self) -> str:
        rows = [self.rows[int(number)] for number in self.first_rows]
        for way, named in WAYS.items():
            ids: dict[int | str, str] = {}
            for row in rows:
                name = self.image_name(row)
                found = named(row, name)
                if found is None:
                    break
                if (other := ids.setdefault(found, name)) != name:
                    if way == "own":
                        where = ", ".join(map(str, self.rows.paths))
                        what = f"two pictures have the id {found}, {other} and {name}: their results would be one row"
                        raise ConfigError(where, what, "give each picture an `image_id` of its own, or none")
                    break
            else:
                if way in ("stem", "name"):
                    log.warning(
                        "%s/%s: results are named by %s: other ids would stand twice", self.name, self.split, way
                    )
                return way
        return "name"

    def result_ids(self) -> list[int | str]:
        """What the pictures in use are called in result files, in their order."""
        return [self.image_id(self.row(index)) for index in range(len(self))]

    def references(self) -> dict[int | str, list[str]]:
        """Captions by image id for the pictures in use, as annotated; pictures without any are left out."""
        ids = self.result_ids()
        found: dict[int | str, list[str]] = {}
        for row, sample in zip(self.rows, self._pictures[1].tolist(), strict=True):
            value = row.get(self.parts.args["caption_key"])
            captions = value if isinstance(value, list) else [] if value is None else [value]
            if captions and sample < len(ids):
                found.setdefault(ids[sample], []).extend(map(str, captions))
        return found


def own_id(row: Row, name: str) -> int | str | None:
    """NoCaps' `img_id`, else the `image_id` of a row; None for LAVIS' `coco_42`, whose file has the number too."""
    given = row.get("img_id") if isinstance(row.get("img_id"), int) else row.get("image_id")
    if isinstance(given, str):
        return None if not given.strip() or re.fullmatch(r"[a-z]+_\d+", given) else given
    return given if isinstance(given, int) and not isinstance(given, bool) else None


def digits_of(name: str) -> str:
    """What stands behind the last `_` of a file's stem."""
    return PurePosixPath(name).stem.rpartition("_")[2]


def number_of(name: str) -> int | None:
    """The number that ends a file's name: 42 of `COCO_val2014_000000000042.jpg`."""
    digits = digits_of(name)
    return int(digits) if digits.isascii() and digits.isdigit() else None


WAYS: Mapping[str, Callable[[Row, str], int | str | None]] = {
    "own": own_id,
    "digits": lambda row, name: number_of(name),
    "last": lambda row, name: number_of(name) if number_of(name) is not None else digits_of(name),
    "stem": lambda row, name: PurePosixPath(name).stem,
    "name": lambda row, name: name,
}
"""How the pictures of a split may be called in results, the first that tells them apart."""
