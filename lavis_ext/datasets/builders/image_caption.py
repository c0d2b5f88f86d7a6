"""The shape `image_caption`: a picture and its caption; COCO, NoCaps, Visual Genome, SBU, MiniGPT-4 and their like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Dataset, Sample
from lavis_ext.datasets.builders.context import BuildContext, SplitParts, build_splits
from lavis_ext.datasets.builders.settings import CaptionKeys
from lavis_ext.datasets.datasets.base_dataset import ImageTextDataset, draw_below, instruction, two_ways
from lavis_ext.datasets.readers.annotations import ListRows
from lavis_ext.datasets.readers.parse import Row


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
class CaptionEvalDataset(ImageTextDataset):
    """One picture a sample: `image`, `image_id`, `instance_id`; its captions are `references()`.

    Rows hold all captions of a picture (LAVIS) or one each (official COCO, tables); the latter are gathered by picture.
    """

    Keys = CaptionKeys

    @property
    def first_rows(self) -> np.ndarray:
        """int64 [samples]: the first row of each picture."""
        # a list may be changed in place: its rows are compared by identity, 1 ms for 25,000 of them
        now = tuple(map(id, self.rows)) if isinstance(self.rows, ListRows) else ()
        seen, first = vars(self).get("_first_rows", (None, None))
        if first is None or seen != now:
            key = self.parts.args["image_key"]
            key = key if self.rows.has(key) else "image_id"
            first = np.unique(self.rows.codes(key), return_index=True)[1]
            vars(self)["_first_rows"] = (now, first)
        found: np.ndarray = first
        return found

    def count(self) -> int:
        """How many pictures."""
        return len(self.first_rows)

    def row(self, index: int) -> Row:
        """The first record of a picture."""
        row: Row = self.rows[int(self.first_rows[self.position(index)])]
        return row

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """The ids."""
        return {"image_id": self.sample_image_id(row), "instance_id": str(self.position(index))}

    def sample_image_id(self, row: Row) -> int | str:
        """LAVIS' id of a sample: NoCaps' `img_id`, else the digits that end the file's name, as text."""
        stem = PurePosixPath(self.image_name(row)).stem.rpartition("_")[2]
        numbered = not isinstance(row.get("img_id"), int) and stem.isascii() and stem.isdigit()
        return stem if numbered else self.image_id(row)

    def image_id(self, row: Row) -> int | str:
        """The id of result files: NoCaps' `img_id`, else the number that ends the file's name, else its stem."""
        if isinstance(row.get("img_id"), int):
            return int(row["img_id"])
        stem = PurePosixPath(self.image_name(row)).stem.rpartition("_")[2]
        known = row.get("image_id")
        return int(stem) if stem.isascii() and stem.isdigit() else known if isinstance(known, int) else stem

    def references(self) -> dict[int | str, list[str]]:
        """Captions by image id for the pictures in use, as annotated; pictures without any are left out."""
        used = {self.image_id(self.row(i)) for i in range(len(self))}
        found: dict[int | str, list[str]] = {}
        for row in self.rows:
            value = row.get(self.parts.args["caption_key"])
            captions = value if isinstance(value, list) else [] if value is None else [str(value)]
            if captions and (key := self.image_id(row)) in used:
                found.setdefault(key, []).extend(captions)
        return found
