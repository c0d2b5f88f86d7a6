"""How `browse` shows data sets on region features: texts, tags, answers, and boxes drawn on the picture or on grey."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lavis_ext.browse.boxes import EDGE
from lavis_ext.browse.regions import draw_regions, find_picture, region_line
from lavis_ext.browse.views import Item, Pixels, SampleText, View, choose
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.images import ImageStore
from lavis_ext.oscar.datasets.base import RegionDataset
from lavis_ext.oscar.datasets.regions import RegionPlace, tag_text

TEXTS = {"q": "question", "caption": "caption", "captions": "caption"}


class RegionView(View):
    """Samples of one split; `args.images` is where pictures are, if they are anywhere."""

    edge = EDGE
    pictured = False
    """The data has no pictures of its own; boxes are drawn on those of `args.images`, or on grey."""

    def __init__(self, dataset: RegionDataset) -> None:
        self.dataset = dataset
        self.scope, self.total = "samples", len(dataset)

    def at(self, index: int) -> Item:
        """A sample as the data set numbers it."""
        return Item(str(index), self._with_regions(index), index, index=index)

    def survey(self, most: int) -> Iterator[SampleText]:
        """The texts of at most `most` samples."""
        return map(self._text, choose(self.total, most))

    def pictures(self, item: Item) -> list[Pixels]:
        """The regions of a sample, of two images for a pair; raises SampleError where there are no features."""
        found = self.dataset.images_of(self.dataset.row(item.handle), item.handle)
        return [self._drawn(image_id, place) for image_id, place in found]

    def _with_regions(self, index: int) -> SampleText:
        """The texts of a sample and what its regions are called, of two images for a pair."""
        text = self._text(index)
        try:
            found = self.dataset.images_of(self.dataset.row(index), index)
        except SampleError:
            return text  # the place of its picture says why
        lines = [region_line(self.dataset.parts.regions.record(place)) for _, place in found]
        return replace(text, more=(*text.more, *lines))

    def _text(self, index: int) -> SampleText:
        return text_of_regions(self.dataset.row(index), self.dataset)

    def _drawn(self, image_id: Any, place: RegionPlace) -> Pixels:
        return draw_regions(self.dataset.parts.regions.record(place), find_picture(self._images, str(image_id)))

    @cached_property
    def _images(self) -> ImageStore | None:
        folder = self.dataset.parts.args["images"]
        return ImageStore(folder) if folder and Path(folder).is_dir() else None


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
