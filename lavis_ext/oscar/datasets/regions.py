"""Inputs of data sets on regions: features in stores by image id, texts as BERT's inputs, object tags by image id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lavis_ext.common.errors import ConfigError, IntegrityError, UsageError
from lavis_ext.common.files import decode_json
from lavis_ext.datasets.readers.annotations import Annotations, Rows
from lavis_ext.datasets.readers.parse import OneFile, Row
from lavis_ext.features.formats.lines import lines_of
from lavis_ext.features.formats.tsv import APPEARANCE, six_columns
from lavis_ext.features.layout import FRACTIONS, NO_BOXES, UNITS, Array, key_of
from lavis_ext.features.store import FeatureStore, Record
from lavis_ext.oscar.wordpiece import WordPiece

WITH_BOX = APPEARANCE + 6
"""2048 numbers of appearance, then x1/W, y1/H, x2/W, y2/H, w/W, h/H."""


class RegionPlace(NamedTuple):
    """Store and row of an image's features, and how many of its regions are used."""

    store: int
    row: int
    size: int


@dataclass(frozen=True, eq=False)
class RegionStores:
    """Stores that are asked in turn, `columns` numbers a region, the first `most` regions of an image. Picklable."""

    stores: tuple[FeatureStore, ...]
    columns: int = WITH_BOX
    most: int = 50
    boxed: bool = False
    """Whether boxes are asked for beside the features, as fractions of an image whose size must then be known."""

    def __post_init__(self) -> None:
        for store in self.stores:
            _check_width(store, self.columns)

    def find(self, image_id: str | int, among: Sequence[int] | None = None) -> RegionPlace:
        """The place of an image, in all stores or in those numbered `among`.

        Raises UsageError where no store has it, or where its id fits several images of one.
        """
        asked = range(len(self.stores)) if among is None else among
        place = self._seek(image_id, asked)
        if place is not None:
            self._check_size(place)
            return place
        some = [self.stores[number] for number in asked]
        where = ", ".join(str(store.path) for store in some)
        raise UsageError(where, f"no image '{image_id}' among {sum(map(len, some))}", "")

    def count(self, image_id: Any) -> int:
        """How many regions of an image are used, by the indices alone; 0 where `find` would raise."""
        try:
            place = self._seek(image_id, range(len(self.stores)))
        except UsageError:
            return 0
        return 0 if place is None else place.size

    def _seek(self, image_id: Any, asked: Sequence[int]) -> RegionPlace | None:
        for number in asked:
            index = self.stores[number].index
            row = index.find(str(image_id))
            if row is not None:
                return RegionPlace(number, row, min(int(index.count[row]), self.most))
        return None

    def record(self, place: RegionPlace) -> Record:
        """The record of an image."""
        return self.stores[place.store].at(place.row)

    def will_need(self, place: RegionPlace) -> None:
        """Advise the kernel to fetch the rows (`FeatureStore.will_need`)."""
        self.stores[place.store].will_need(place.row)

    def read_into(self, place: RegionPlace, out: Array) -> None:
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

    def array(self, place: RegionPlace) -> Array:
        """The features as a new float32 array [n, columns]."""
        out = np.empty((place.size, self.columns), np.float32)
        self.read_into(place, out)
        return out

    def _check_size(self, place: RegionPlace) -> None:
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


Ids = list[int]
LEAST = 8
"""The least `max_seq_length`: two words, a tag and the special tokens."""


@dataclass(frozen=True)
class Encoder:
    """Texts → `[CLS] A [SEP] B [SEP]` of at most `max_seq_length` tokens, cut as Oscar's readers do. Picklable."""

    words: WordPiece
    max_seq_length: int

    def __post_init__(self) -> None:
        if type(self.max_seq_length) is not int or self.max_seq_length < LEAST:
            way_out = f"give a whole number from {LEAST} on"
            raise ConfigError("args.max_seq_length", f"{self.max_seq_length!r} tokens hold no text", way_out)

    def pair(self, first: str, second: str) -> tuple[Ids, Ids]:
        """`input_ids` and `token_type_ids` of one text or two; of two the longer is cut, token by token."""
        one, other = self.words.encode(first), self.words.encode(second)
        return self.joined(*cut_pair(one, other, self.max_seq_length - (3 if other else 2)))

    def caption(self, caption: Ids, tags: Ids) -> tuple[Ids, Ids]:
        """A caption of at most `max_seq_length` - 2 tokens, and of the tags what then fits (retrieval, captioning)."""
        kept = caption[: self.max_seq_length - 2]
        return self.joined(kept, tags[: max(self.max_seq_length - len(kept) - 3, 0)])

    def joined(self, first: Ids, second: Ids) -> tuple[Ids, Ids]:
        """Add [CLS] and [SEP]; the second text and its [SEP] have type 1, an empty one adds nothing."""
        words = self.words
        ids = [words.cls, *first, words.sep]
        more = [*second, words.sep] if second else []
        return ids + more, [0] * len(ids) + [1] * len(more)


def cut_pair(first: Ids, second: Ids, most: int) -> tuple[Ids, Ids]:
    """Two texts of `most` tokens together: the last token of the longer goes, of the second where both are as long."""
    surplus = len(first) + len(second) - most
    if surplus <= 0:
        return first, second
    gap = len(first) - len(second)
    # the longer shrinks to the other's length first, then both shrink in turn, beginning with the second
    level = min(abs(gap), surplus)
    rest = surplus - level
    from_first = (level if gap > 0 else 0) + rest // 2
    from_second = surplus - from_first
    return first[: len(first) - from_first], second[: len(second) - from_second]


def tag_text(value: Any) -> str:
    """Object tags as one text: they come separated by `;`, or as a list."""
    if isinstance(value, list):
        return " ".join(str(one["class"]) if isinstance(one, dict) and "class" in one else str(one) for one in value)
    return str(value or "").replace(";", " ").strip()


WAY_OUT = "fetch it again"


@dataclass(frozen=True)
class TagFile(OneFile):
    """Object tags: `image_id` and JSON, a list of labels, `{"objects": [labels]}` or `{"labels": [texts]}`."""

    KIND = "tags"

    def parse(self) -> list[Row]:
        """`image_id` and `tags`, the classes as one text; raises IntegrityError."""
        return [{"image_id": image_id, "tags": tags} for image_id, tags in self._rows()]

    def _rows(self) -> Iterator[tuple[str, str]]:
        for number, line, _ in lines_of(self.path):
            image_id, _, text = line.partition(b"\t")
            try:
                yield image_id.decode(), tag_text(labels_in(decode_json(text)))
            except (ValueError, TypeError) as error:
                raise IntegrityError(f"{self.path}:{number}", f"has no labels as JSON: {error}", WAY_OUT) from error


def labels_in(value: Any) -> list[Any]:
    """The list of labels in the JSON of an image; raises TypeError where there is none."""
    if isinstance(value, dict):
        value = value.get("objects", value.get("labels"))
    if not isinstance(value, list):
        raise TypeError("no list of labels")
    return value


@dataclass(frozen=True, eq=False)
class TagTable:
    """The tags of images by id, mapped from the Arrow copy. Picklable."""

    rows: Annotations

    @cached_property
    def ids(self) -> list[str]:
        """All ids in the order of the files."""
        return [str(image_id) for image_id in self.rows.column("image_id")]

    @cached_property
    def _places(self) -> dict[str, int]:
        by_key = {key_of(image_id): number for number, image_id in enumerate(self.ids)}
        return by_key | {image_id: number for number, image_id in enumerate(self.ids)}

    def find(self, image_id: str | int) -> str | None:
        """The tags of an image as one text, None where there are none; by its id, else by its number."""
        text = str(image_id)
        number = self._places.get(text, self._places.get(key_of(text)))
        return None if number is None else str(self.rows[number]["tags"])


def tag_table(path: Path) -> TagTable:
    """The tags in one file."""
    return TagTable(Annotations([TagFile(path)]))


@dataclass(frozen=True, eq=False)
class ImageRows(Rows):
    """A row for each image id, with `more` by image key; `paths` are the files that they follow from."""

    ids: Sequence[str]
    paths: tuple[Path, ...]
    more: dict[str, Row]

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, position: int) -> Row:
        """The row of a number from 0 on."""
        image_id = self.ids[position]
        return {"image_id": image_id, **self.more.get(key_of(image_id), {}), "instance_id": str(position)}
