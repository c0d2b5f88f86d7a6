"""The region features of a split: found by image id in one or more stores, read straight into a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lavis_ext.errors import ConfigError, UsageError
from lavis_ext.features.formats.oscar import APPEARANCE, six_columns
from lavis_ext.features.layout import FRACTIONS, NO_BOXES, UNITS, Array
from lavis_ext.features.store import FeatureStore, Record

WITH_BOX = APPEARANCE + 6
"""2048 numbers of appearance, then x1/W, y1/H, x2/W, y2/H, w/W, h/H."""


class Place(NamedTuple):
    """Where an image's features lie, and how many regions of it are used."""

    store: int
    row: int
    size: int


@dataclass(frozen=True, eq=False)
class Regions:
    """Stores that are asked in turn, `columns` numbers a region, the first `most` regions of an image. Picklable."""

    stores: tuple[FeatureStore, ...]
    columns: int = WITH_BOX
    most: int = 50
    boxed: bool = False
    """Whether boxes are asked for beside the features, as fractions of an image whose size must then be known."""

    def __post_init__(self) -> None:
        for store in self.stores:
            _check_width(store, self.columns)

    def find(self, image_id: str | int, among: Sequence[int] | None = None) -> Place:
        """Where an image lies, in all stores or in those of some numbers.

        Raises UsageError where no store has it, or where its id fits several images of one.
        """
        asked = range(len(self.stores)) if among is None else among
        place = self._seek(image_id, asked)
        if place is not None:
            self._check_size(place)
            return place
        some = [self.stores[number] for number in asked]
        told = ", ".join(str(store.path) for store in some)
        raise UsageError(told, f"no image '{image_id}' among {sum(map(len, some))}", "")

    def count(self, image_id: Any) -> int:
        """How many regions of an image are used, by the indices alone; 0 where `find` would raise."""
        try:
            place = self._seek(image_id, range(len(self.stores)))
        except UsageError:
            return 0
        return 0 if place is None else place.size

    def _seek(self, image_id: Any, asked: Sequence[int]) -> Place | None:
        for number in asked:
            index = self.stores[number].index
            row = index.find(str(image_id))
            if row is not None:
                return Place(number, row, min(int(index.count[row]), self.most))
        return None

    def record(self, place: Place) -> Record:
        """All that the store knows of an image."""
        return self.stores[place.store].at(place.row)

    def will_need(self, place: Place) -> None:
        """Have the system fetch the rows meanwhile."""
        self.stores[place.store].will_need(place.row)

    def read_into(self, place: Place, out: Array) -> None:
        """Fill float32 `out` [m, columns] with an image's regions; the rows after them become 0.

        A store of appearance alone (2048) gets the six box columns from its boxes; of one with them, an input of 2048
        takes the appearance.
        """
        store, n = self.stores[place.store], min(place.size, len(out))
        if store.columns == self.columns:
            store.read_row_into(place.row, out)
            return
        out[n:] = 0
        record = store.at(place.row)
        width = min(store.columns, self.columns)
        out[:n, :width] = record.features[:n, :width]
        if width < self.columns:
            out[:n, width:] = box_columns(record)[:n]

    def array(self, place: Place) -> Array:
        """The features as a new float32 array [n, columns]."""
        out = np.empty((place.size, self.columns), np.float32)
        self.read_into(place, out)
        return out

    def _check_size(self, place: Place) -> None:
        """Raise UsageError where box columns are wanted of boxes in pixels of an image whose size is not known."""
        store = self.stores[place.store]
        if not place.size or (store.columns >= self.columns and not self.boxed):
            return
        record = store.at(place.row)
        if record.boxes is None or (record.box_unit != UNITS[FRACTIONS] and not (record.height and record.width)):
            raise UsageError(str(store.path), f"image '{record.image_id}' has no boxes in a known size", "")


def box_columns(record: Record) -> Array:
    """[n, 6] float32: x1/W, y1/H, x2/W, y2/H, w/W, h/H of a record's boxes."""
    boxes: Any = record.boxes if record.boxes is not None else np.zeros((0, 4), np.float32)
    if record.box_unit == UNITS[FRACTIONS]:
        return six_columns(boxes, 1, 1)
    return six_columns(boxes, record.height, record.width)


def _check_width(store: FeatureStore, columns: int) -> None:
    """Raise ConfigError where a store's rows can never become rows of `columns`."""
    width = store.columns
    fits = width in (0, columns) or (columns == APPEARANCE and width > columns)
    boxed = width == APPEARANCE and columns == WITH_BOX and _has_boxes(store)
    if not fits and not boxed:
        what = f"rows of {width} numbers, {'' if _has_boxes(store) else 'without boxes, '}where {columns} are asked for"
        raise ConfigError(str(store.path), what, "set args.img_feature_dim, or import features that fit")


def _has_boxes(store: FeatureStore) -> bool:
    first = store.at(0) if len(store) else None
    return first is None or first.box_unit != UNITS[NO_BOXES]
