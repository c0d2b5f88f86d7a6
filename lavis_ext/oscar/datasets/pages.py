"""How `browse` shows data sets on region features: texts, tags, answers, and boxes drawn on the picture or on grey."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lavis_ext.browse.views import Item, Pixels, SampleText, choose
from lavis_ext.datasets.readers.decode import decode_rgb
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.images import ImageStore
from lavis_ext.features.layout import key_of
from lavis_ext.oscar.datasets.base import RegionDataset
from lavis_ext.oscar.datasets.regions import RegionPlace, box_columns, tag_text

TEXTS = {"q": "question", "caption": "caption", "captions": "caption"}
CANVAS = (640, 480)
GREY = (236, 236, 240)
COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#b91c1c", "#0e7490")
NAMES = ("{id}", "{id}.jpg", "{id}.png", "{bare}.jpg", "{bare}.png")
COCO = tuple(f"COCO_{folder}_{{number:012d}}.jpg" for folder in ("train2014", "val2014", "test2015"))


class RegionView:
    """Samples of one split; `args.images` is where pictures are, if they are anywhere."""

    chosen = "evenly chosen"
    pictured = False
    """The data has no pictures of its own; boxes are drawn on those of `args.images`, or on grey."""

    def __init__(self, dataset: RegionDataset) -> None:
        self.dataset = dataset
        self.scope, self.total = "samples", len(dataset)

    def __len__(self) -> int:
        return self.total

    def items(self, wanted: int, seed: int | None) -> list[Item]:
        """Samples as the data set numbers them."""
        return [Item(str(index), self._text(index), index) for index in choose(self.total, wanted, seed)]

    def survey(self, most: int) -> Iterator[SampleText]:
        """The texts of at most `most` samples."""
        return map(self._text, choose(self.total, most))

    def pictures(self, item: Item) -> list[Pixels]:
        """The regions of a sample, of two images for a pair; raises SampleError where there are no features."""
        found = self.dataset.images_of(self.dataset.row(item.handle), item.handle)
        return [self._drawn(image_id, place) for image_id, place in found]

    def data(self, item: Item) -> bytes:
        """Nothing: there are no encoded pictures. Raises SampleError."""
        raise SampleError(self.dataset.sample_id(item.handle), "", "no picture belongs to region features")

    def _text(self, index: int) -> SampleText:
        return text_of_regions(self.dataset.row(index), self.dataset)

    def _drawn(self, image_id: Any, place: RegionPlace) -> Pixels:
        record = self.dataset.parts.regions.record(place)
        size = (record.width, record.height) if record.width and record.height else CANVAS
        canvas = self._picture(image_id) or Image.new("RGB", size, GREY)
        draw = ImageDraw.Draw(canvas)
        boxes = box_columns(record)[:, :4] if record.box_unit else np.zeros((0, 4))
        scale = np.array([canvas.width, canvas.height] * 2)
        for number, (x1, y1, x2, y2) in enumerate((np.clip(boxes, 0, 1) * scale).tolist()):
            corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
            draw.rectangle(corners, outline=COLOURS[number % len(COLOURS)], width=2)
        return np.asarray(canvas)

    @cached_property
    def _images(self) -> ImageStore | None:
        folder = self.dataset.parts.args["images"]
        return ImageStore(folder) if folder and Path(folder).is_dir() else None

    def _picture(self, image_id: Any) -> Image.Image | None:
        """The picture under any of the names that these data sets' images have, None where there is none."""
        images = self._images
        if images is None:
            return None
        for name in names_of(str(image_id)):
            if images.exists(name):
                return Image.fromarray(decode_rgb(images.read(name), path=name))
        return None


def names_of(image_id: str) -> list[str]:
    """File names that an image of this id may have: the id, the id without its data set, COCO's for a number."""
    key = key_of(image_id)
    bare = image_id.partition("_")[2] or image_id
    patterns = [*NAMES, *(COCO if key.isdigit() else ())]
    return [pattern.format(id=image_id, bare=bare, number=int(key) if key.isdigit() else 0) for pattern in patterns]


def text_of_regions(row: Mapping[str, Any], dataset: RegionDataset) -> SampleText:
    """Question or captions, tags, answers by the vocabulary, and whether a sentence holds."""
    key = next((key for key in TEXTS if row.get(key)), "")
    said = row.get(key)
    texts = [str(text) for text in said] if isinstance(said, list) else [str(said)] if said else []
    tags = row.get("o", row.get("tags"))
    shown = [tag_text(tags.get(side)) for side in tags] if isinstance(tags, dict) else [tag_text(tags)]
    label = "" if row.get("label") is None else str(row["label"])
    more = tuple(f"tags: {text}" for text in shown if text)
    return SampleText(TEXTS.get(key, "text"), tuple(texts), answers_of(row, dataset), label, more=more)


def answers_of(row: Mapping[str, Any], dataset: RegionDataset) -> tuple[str, ...]:
    """The answers of a record by the vocabulary."""
    labels = dataset.labels
    given = row.get("an") if labels else None
    if labels is None or not isinstance(given, list):
        return ()
    return tuple(labels.answers[labels.classes[one]] for one in given if one in labels.classes)
