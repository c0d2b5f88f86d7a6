"""Regions on a page: boxes with label and confidence on a picture or on grey, and the page of a feature store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lavis_ext.browse.boxes import EDGE, Region, drawn
from lavis_ext.browse.html import Tile, histogram, ranked_list, write_document
from lavis_ext.browse.samples import sample_grid
from lavis_ext.browse.views import Item, Pixels, SampleText, View, choose
from lavis_ext.common.wording import human
from lavis_ext.datasets.readers.decode import decode_rgb
from lavis_ext.datasets.readers.images import ImageStore
from lavis_ext.features.layout import FRACTIONS, NO_BOXES, UNITS, key_of
from lavis_ext.features.store import FeatureStore, Record, open_store
from lavis_ext.features.tools import info

LISTED = 20
CANVAS = (640, 480)
GREY = (236, 236, 240)
NAMES = ("{id}", "{id}.jpg", "{id}.png", "{bare}.jpg", "{bare}.png")
COCO = (*(f"COCO_{folder}_{{number:012d}}.jpg" for folder in ("train2014", "val2014", "test2015")), "{number:012d}.jpg")
"""Names of COCO's pictures, of 2014 and of 2017."""
SAMPLES = 24
MOST = 5_000
TOP = 12


def regions_of(record: Record) -> list[Region]:
    """The regions of a record, those that are named first, by confidence.

    Names are those of its labels: by order where there are as many as boxes, else at the boxes that the labels have
    themselves (tags may come from another threshold, or another detector); else the numbers of the classes.
    """
    boxes, labels = shares_of(record), [one for one in record.labels if isinstance(one, dict)]
    kinds, sure = (list(record.arrays.get(name, ())) for name in ("objects_id", "objects_conf"))
    found = []
    if labels and len(labels) != len(boxes):
        scale = _extent(record, labels)
        own = [(one, np.array(one["rect"], float) / scale) for one in labels if _is_rect(one.get("rect"))]
        found += [_region(box, str(one.get("class", "")), one.get("conf")) for one, box in own]
        labels = []
    for number, box in enumerate(boxes):
        if labels:
            found.append(_region(box, str(labels[number].get("class", "")), labels[number].get("conf")))
        else:
            name = f"class {int(kinds[number])}" if number < len(kinds) else ""
            found.append(_region(box, name, sure[number] if number < len(sure) else None))
    return sorted(found, key=lambda one: (not one.name, -(one.conf or 0.0)))


def shares_of(record: Record) -> np.ndarray:
    """[n, 4] x1, y1, x2, y2 as shares of the picture, within 0 and 1; none where the record has no boxes."""
    if record.boxes is None or record.box_unit == UNITS[NO_BOXES]:
        return np.zeros((0, 4))
    boxes = np.asarray(record.boxes, float)
    if record.box_unit != UNITS[FRACTIONS]:
        size = [record.width, record.height] if record.width and record.height else boxes.max(0)[2:].clip(min=1)
        boxes = boxes / np.array([*size, *size])
    shares: np.ndarray = np.nan_to_num(boxes).clip(0, 1)
    return shares


def _region(box: Any, name: str, conf: Any) -> Region:
    x1, y1, x2, y2 = (float(value) for value in np.nan_to_num(np.asarray(box, float)).clip(0, 1))
    known = isinstance(conf, (int, float, np.number)) and np.isfinite(conf)
    return Region((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), name, float(conf) if known else None)


def _is_rect(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(one, (int, float)) for one in value)


def _extent(record: Record, labels: list[dict[str, Any]]) -> np.ndarray:
    """The size of the picture as [W, H, W, H]; where it is not known, that of all rectangles together."""
    if record.width and record.height:
        return np.array([record.width, record.height] * 2, float)
    corners = [one["rect"][2:] for one in labels if _is_rect(one.get("rect"))] or [[1, 1]]
    return np.array([*np.max(corners, 0)] * 2, float).clip(min=1)


def draw_regions(record: Record, picture: Image.Image | None) -> Pixels:
    """The regions on the picture, or on grey of its size, uint8 [H,W,3]; its longer edge is `EDGE`."""
    size = (record.width, record.height) if record.width and record.height else CANVAS
    return drawn(picture or Image.new("RGB", size, GREY), regions_of(record))


def region_line(record: Record) -> str:
    """`36 regions: dog 0.98, red ball 0.91, …`, the most certain first."""
    found = regions_of(record)
    named = [one.label for one in found if one.name]
    more = f" and {len(named) - LISTED} more" if len(named) > LISTED else ""
    listed = f": {', '.join(named[:LISTED])}{more}" if named else ""
    return f"{len(record):,} regions{listed}"


def find_picture(images: ImageStore | None, image_id: str) -> Image.Image | None:
    """The picture of an id under any of the names that it may have, None where there is none."""
    for name in names_of(image_id) if images else ():
        if images and images.exists(name):
            return Image.fromarray(decode_rgb(images.read(name), path=name))
    return None


def names_of(image_id: str) -> list[str]:
    """File names that an image of this id may have: the id, the id without its data set, COCO's for a number."""
    bare = image_id.partition("_")[2] or image_id
    number = next((key for one in (image_id, bare) if (key := key_of(one)).isdigit()), None)
    patterns = [*NAMES, *(COCO if number else ())]
    return [pattern.format(id=image_id, bare=bare, number=int(number or 0)) for pattern in patterns]


class StoreView(View):
    """The records of a feature store as the samples of a page."""

    pictured = False
    edge = EDGE

    def __init__(self, store: FeatureStore, images: ImageStore | None = None) -> None:
        self.store, self.images = store, images
        self.scope, self.total = "images", len(store)

    def at(self, index: int) -> Item:
        """A record by its number in the store."""
        return Item(str(index), self._text(index), index, index=index)

    def survey(self, most: int) -> Iterator[SampleText]:
        """The texts of at most `most` records."""
        return map(self._text, choose(self.total, most))

    def pictures(self, item: Item) -> list[Pixels]:
        """The regions of a record."""
        record = self.store.at(item.handle)
        return [draw_regions(record, find_picture(self.images, record.image_id))]

    def _text(self, row: int) -> SampleText:
        record = self.store.at(row)
        size = f"{record.width} × {record.height} pixels" if record.width and record.height else "size not known"
        return SampleText("image", (record.image_id,), more=(size, region_line(record)))

    @cached_property
    def labels(self) -> Counter[str]:
        """How often each label occurs, in at most `MOST` records."""
        rows = choose(self.total, MOST)
        return Counter(one.name for row in rows for one in regions_of(self.store.at(row)) if one.name)


def write_store_page(
    path: Path, out: Path | None, cache_root: Path, images: Path | None = None, seed: int | None = None
) -> Path:
    """Write the page of a feature store to `out` (default: `<its name>.html` here); returns its path.

    Pictures are looked for in `images`, else where COCO's are below the cache root; where there are none, boxes are
    drawn on grey. Raises what opening the store raises, DiskError.
    """
    store = open_store(path)
    folder = images or cache_root / "coco" / "images"
    view = StoreView(store, ImageStore(folder) if folder.is_dir() else None)
    facts = info(store)
    counts = [int(count) for count in np.asarray(store.index.count)]
    target = out or Path(f"{path.resolve().name}.html")
    grid = sample_grid(view, view.items(SAMPLES, seed))
    sources = "\n".join(json.dumps(source, ensure_ascii=False) for source in facts["sources"])
    least, mean, most = facts["boxes_per_image"] or (0, 0, 0)
    tiles = [
        Tile("images", f"{facts['images']:,}", f"{facts['faults']:,} rows could not be imported"),
        Tile(
            "regions",
            f"{facts['boxes']:,}",
            f"{least} to {most} an image, {mean} in the mean" if least < most else f"{least} an image",
        ),
        Tile("numbers a region", f"{facts['columns']:,}", facts["dtype"]),
        Tile("size", human(facts["bytes"]), "of the rows"),
    ]
    figures = [histogram("Regions of an image", {"store": counts}, "regions", whole=True)]
    figures += [ranked_list("Labels", dict(view.labels.most_common(TOP)), view.labels.total(), "")]
    note = grid.note(len(view), f"drawn by seed {seed}" if seed is not None else view.chosen)
    values = {"store": str(path), "tiles": tiles, "charts": [chart for chart in figures if chart], "note": note}
    write_document(target, "store.html", **values, shots=grid.shots, sources=sources)
    return target
