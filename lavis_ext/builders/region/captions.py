"""Data sets of images with several captions each: one sample a caption, and where tags come from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from lavis_ext.builders.base import draw_below
from lavis_ext.builders.region.base import RegionDataset
from lavis_ext.builders.region.regions import Place
from lavis_ext.builders.region.text import Ids, tag_text
from lavis_ext.errors import IntegrityError
from lavis_ext.readers.parse import Row

PER_IMAGE = ("num_captions_per_img_train", "num_captions_per_img_val")
ALL = 1 << 30


@dataclass(frozen=True, eq=False)
class CaptionRows(RegionDataset):
    """Rows of one image each, with its `captions`."""

    @property
    def per_image(self) -> int:
        """How many captions of an image count."""
        value = self.parts.args[PER_IMAGE[0 if self.parts.training else 1]]
        return ALL if value is None else int(value)

    def tags(self, row: Row, place: Place) -> Ids:
        """The ids of an image's tags: of their file, else of the labels in the store."""
        if not self.parts.args["add_od_labels"]:
            return []
        text = row["tags"] if "tags" in row else tag_text(self.parts.regions.record(place).labels)
        return self.parts.encoder.words.encode(text)

    def caption_of(self, row: Row, rng: torch.Generator | None) -> str:
        """One of the captions of an image that count."""
        captions: list[str] = row["captions"]
        return captions[draw_below(min(len(captions), self.per_image), rng)]


@dataclass(frozen=True, eq=False)
class PerCaption(CaptionRows):
    """One sample for each caption that counts; images without one give none."""

    @cached_property
    def stops(self) -> np.ndarray:
        """int64 [images]: how many samples there are up to and with each image."""
        counts: np.ndarray = np.minimum(self.rows.lengths("captions"), self.per_image)
        if len(counts) < 2 or (counts == 0).any():
            what = "an image without captions" if len(counts) > 1 else "fewer than two images"
            raise IntegrityError(", ".join(map(str, self.rows.paths)), f"holds {what}", "no pair can be made of it")
        return np.cumsum(counts)

    def count(self) -> int:
        """One sample for each caption in use."""
        return int(self.stops[-1])

    def image_of(self, position: int) -> tuple[int, int]:
        """The image that a sample is of, and the number of the caption among its own."""
        image = int(np.searchsorted(self.stops, position, side="right"))
        return image, position - (int(self.stops[image - 1]) if image else 0)

    def row(self, index: int) -> Row:
        """The image that a sample is of, with its `caption`."""
        image, number = self.image_of(self.position(index))
        row: Row = self.rows[image]
        return {**row, "caption": row["captions"][number], "instance_id": str(self.position(index))}


def other_than(number: int, count: int, rng: torch.Generator | None) -> int:
    """A uniform number in 0 … count - 1 that is not `number`, by one draw."""
    drawn = draw_below(count - 1, rng)
    return drawn + (drawn >= number)
