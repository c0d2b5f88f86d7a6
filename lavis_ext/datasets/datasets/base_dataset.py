"""Bases of data sets: rows with ids and faults, and rows with a picture that is found, decoded and processed."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lavis_ext.common.types import Batch, Sample
from lavis_ext.datasets.builders.context import Parts, SplitParts
from lavis_ext.datasets.collate import collate
from lavis_ext.datasets.readers.annotations import Annotations
from lavis_ext.datasets.readers.decode import decode_rgb
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.images import ImageStore
from lavis_ext.datasets.readers.parse import Row


@dataclass(frozen=True, eq=False)
class BaseDataset:
    """Rows of one split. Picklable."""

    parts: Parts

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.parts.config.name

    @property
    def split(self) -> str:
        """The split."""
        return self.parts.split

    @property
    def rows(self) -> Any:
        """The annotation records, in the order of the files."""
        return self.parts.rows

    @property
    def annotation(self) -> Any:
        """The rows under LAVIS' name."""
        return self.parts.rows

    @property
    def tolerance(self) -> float:
        """Share of samples that may fail."""
        return self.parts.config.tolerance

    def __len__(self) -> int:
        count = self.count()
        return count if self.parts.limit is None else min(count, self.parts.limit)

    def count(self) -> int:
        """How many samples there are before `max_samples` cuts them."""
        return len(self.rows)

    def row(self, index: int) -> Row:
        """The annotation record of a sample; raises IndexError beyond the end."""
        row: Row = self.rows[self.position(index)]
        return row

    def position(self, index: int) -> int:
        """The number of a sample's row, counted from the first file's first; negative indices count from the end."""
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"sample {index} of {len(self)} of {self.name}/{self.split}")
        return position

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Samples → batch."""
        return collate(samples)

    def sample_id(self, index: int) -> str:
        """The name of a sample in fault reports: `coco_caption/train#17`."""
        return f"{self.name}/{self.split}#{index}"

    def fault(self, index: int, why: str) -> SampleError:
        """The error for a sample whose row cannot be used."""
        return SampleError(self.sample_id(index), ", ".join(map(str, self.parts.files_read)), why)


MAX_TEXT = 100_000
_UNWANTED = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class ImageTextDataset(BaseDataset):
    """Rows of one split with their pictures; a shape adds the other keys of a sample in `fields`. Picklable."""

    parts: SplitParts

    @property
    def rows(self) -> Annotations:
        """The annotation records, in the order of the files."""
        return self.parts.rows

    @property
    def images(self) -> ImageStore:
        """Where the pictures come from."""
        return self.parts.images

    @property
    def vis_processor(self) -> Any:
        """The image processor, or None."""
        return self.parts.vis_processor

    @property
    def text_processor(self) -> Any:
        """The text processor, or None."""
        return self.parts.text_processor

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """The keys of a sample beside `image`; without `rng` torch's global generator is drawn from."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        """LAVIS' sample: `image` float32 [3,H,W], or a PIL image where no vis_processor is set. Raises SampleError."""
        row = self.row(index)
        pixels = self.pixels(row, index)
        processor = self.vis_processor
        image = processor(pixels) if hasattr(processor, "uint8") else self._other(pixels)
        return {"image": image, **self.fields(row, index, None)}

    def load(self, index: int, rng: torch.Generator) -> Sample:
        """The sample with `image` uint8 [3,H,W] and all randomness from `rng`. Raises SampleError.

        A processor without `uint8` is called as it is, with its own randomness.
        """
        row = self.row(index)
        pixels = self.pixels(row, index)
        processor = self.vis_processor
        image = processor.uint8(pixels, rng) if hasattr(processor, "uint8") else self._other(pixels)
        return {"image": image, **self.fields(row, index, rng)}

    def displ_item(self, index: int) -> OrderedDict[str, Any]:
        """What a browser shows of a sample: file, caption, image (LAVIS' method)."""
        row = self.row(index)
        shown = {"file": self.image_name(row), "caption": row.get("caption"), "image": self[index]["image"]}
        return OrderedDict(shown)

    def pixels(self, row: Row, index: int) -> np.ndarray:
        """The picture of a row, uint8 [H,W,3]; raises SampleError under the id of the sample."""
        name = self.image_name(row)
        try:
            place, member = self.images.find(name)
            return decode_rgb(place.read(member), path=place.where(member))
        except SampleError as error:
            raise SampleError(self.sample_id(index), error.path, error.why) from error

    def image_name(self, row: Row) -> str:
        """The name of a row's picture: its `image_key`, else its `image_pattern`, else its `image_id` with `.jpg`."""
        name = row.get(self.parts.args["image_key"])
        if name is not None:
            return str(name)
        pattern = self.parts.args["image_pattern"] or "{image_id}.jpg"
        return str(pattern).format_map({**row, "image_id": row.get("image_id", "")})

    def row_text(self, row: Row, key: str, index: int) -> str:
        """A text of a row through the text processor; raises SampleError where there is none."""
        return self.processed(row.get(key), key, index)

    def processed(self, value: Any, key: str, index: int) -> str:
        """A text, rid of NUL and lone surrogates, through the text processor.

        Raises SampleError for what is no text, empty, or longer than `MAX_TEXT` characters.
        """
        if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT:
            fault = "is missing or empty" if not isinstance(value, str) or not value.strip() else "is too long"
            raise self.fault(index, f"{key} {fault}")
        text = _UNWANTED.sub("", value)
        return text if self.text_processor is None else str(self.text_processor(text))

    def _other(self, pixels: np.ndarray) -> Any:
        from PIL import Image

        image = Image.fromarray(pixels)
        return image if self.vis_processor is None else self.vis_processor(image)


def draw_below(stop: int, rng: torch.Generator | None) -> int:
    """A uniform integer in 0 … stop - 1."""
    return int(torch.randint(stop, (1,), generator=rng).item())
