"""Oscar's and VinVL's tab-separated rows: `id, n, base64`, `id, {"num_boxes", "features"}`, and raw predictions."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext.errors import UsageError
from lavis_ext.features.formats.base import SideTable, guard, number_of, plain_id, shown, size_in, text_of
from lavis_ext.features.formats.lines import decode64, encode64, lines_of, write_lineidx, write_lines
from lavis_ext.features.formats.offsets import warn_of_stale_map, write_offset_map
from lavis_ext.features.layout import FRACTIONS, PIXELS, Array
from lavis_ext.features.row import LABELS, BadRow, ReadOptions, Row, Rows, Start, shape_features
from lavis_ext.features.store import FeatureStore, Record

APPEARANCE = 2048


class OscarTsv:
    """Three columns: `image_id`, `num_boxes`, base64 of [n, 2054]; further columns between are passed over."""

    name = "oscar-tsv"

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """Rows of the file, with labels and sizes from the side files that `options` names or that lie beside it."""
        sides = Sides(path, options)
        warn_of_stale_map(path)
        for number, line, end in lines_of(path, start):
            image_id = line[:256].partition(b"\t")[0]
            yield guard(number, end, image_id.decode("utf-8", "replace"), partial(parse_row, line, sides, options))

    def write(self, store: FeatureStore, path: Path, options: dict[str, Any]) -> list[str]:
        """Write `path`, its `.lineidx` and `imageid2idx.json`, and labels, if there are any, to `predictions.tsv`.

        A path that ends in `_feats.tsv` gets an offset map too.
        """
        write_lines(store, path, self.line)
        side = _label_path(path)
        labelled = any(store.at(row).label_text is not None for row in range(len(store)))
        if labelled:
            write_lines(store, side, _label_line)
            write_lineidx_only(side)
        write_lineidx(path)
        write_offset_map(path)
        return [f"labels: {side}"] if labelled else []

    def line(self, record: Record) -> bytes:
        """One row as bytes, with its new line."""
        head = f"{plain_id(record.image_id, self.name)}\t{len(record)}\t".encode()
        return head + encode64(np.ascontiguousarray(record.features)) + b"\n"


class VinvlTsv(OscarTsv):
    """Two columns: `image_id` and JSON with the features, of the captioning data or of a detector's raw predictions."""

    name = "vinvl-tsv"

    def line(self, record: Record) -> bytes:
        """One row as the captioning data has it."""
        features = encode64(np.ascontiguousarray(record.features)).decode()
        value = json.dumps({"num_boxes": len(record), "features": features})
        return f"{plain_id(record.image_id, self.name)}\t{value}\n".encode()


def write_lineidx_only(path: Path) -> None:
    """The `.lineidx` of a label file."""
    from lavis_ext.features.files import write_atomic
    from lavis_ext.features.formats.lines import lineidx_path, offsets_of

    if not lineidx_path(path).exists():
        write_atomic(lineidx_path(path), "".join(f"{at}\n" for _, at in offsets_of(path)).encode())


class Sides:
    """Labels and sizes of the images of one file."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        labels, sizes = options.labels or _label_path(path), options.sizes or _size_path(path)
        for side, given in ((labels, options.labels), (sizes, options.sizes)):
            if given and not side.is_file():
                raise UsageError(str(side), "is not there", "name a file of labels or sizes")
        self._labels = SideTable(labels) if labels.is_file() and labels != path else None
        self._sizes = SideTable(sizes) if sizes.is_file() and sizes != path else None

    def add(self, row: Row) -> Row:
        """The row with its labels, its size, and boxes in pixels where the size is known; raises BadRow."""
        text = self._labels.find(row.image_id) if self._labels else None
        if text is not None:
            row.arrays[LABELS] = np.frombuffer(text, np.uint8)
        if not row.height:
            row.height, row.width = size_in(self._sizes.find(row.image_id) if self._sizes else None)
        if not row.height and text is not None:
            row.height, row.width = size_in(text)
        return boxes_of(row)


def boxes_of(row: Row) -> Row:
    """A row whose boxes are taken from columns 2048 to 2051 of its features, where it has none of its own."""
    empty = not len(row.features)
    if row.boxes is not None or (row.features.shape[1] < APPEARANCE + 4 and not empty):
        return row
    boxes = np.zeros((0, 4)) if empty else row.features[:, APPEARANCE : APPEARANCE + 4]
    row.boxes, row.unit = boxes.astype(np.float32), FRACTIONS
    if row.height and row.width:
        row.boxes, row.unit = row.boxes * np.array([row.width, row.height] * 2, np.float32), PIXELS
    return row


def _label_path(path: Path) -> Path:
    """`predictions.tsv` beside `features.tsv`, `x.label.tsv` beside `x.feature.tsv`."""
    if ".feature." in path.name:
        return path.with_name(path.name.replace(".feature.", ".label."))
    return path.with_name("predictions.tsv")


def _size_path(path: Path) -> Path:
    return path.with_name(path.name.replace(".feature.", ".hw.") if ".feature." in path.name else "hw.tsv")


def _label_line(record: Record) -> bytes:
    text = record.label_text
    return record.image_id.encode() + b"\t" + (b"[]" if text is None else text) + b"\n"


def parse_row(line: bytes, sides: Sides, options: ReadOptions) -> Row:
    """One line of either form, without its new line; raises BadRow."""
    line = line.rstrip(b"\r")
    first, last = line.find(b"\t"), line.rfind(b"\t")
    if first < 0:
        raise BadRow("has one column; truncated?")
    image_id = text_of(line[:first])
    if first == last:
        return sides.add(_from_json(image_id, line[first + 1 :], options))
    second = line.find(b"\t", first + 1)
    count = number_of(line[first + 1 : second], "num_boxes")
    raw = decode64(memoryview(line)[last + 1 :])
    return sides.add(Row(image_id, shape_features(raw, count, options.columns)))


def _from_json(image_id: str, text: bytes, options: ReadOptions) -> Row:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadRow(f"the second column is no JSON ({error}); truncated?") from None
    if isinstance(value, dict) and isinstance(value.get("features"), str):
        count = number_of(value.get("num_boxes", -1), "num_boxes")
        return Row(image_id, shape_features(decode64(value["features"].encode()), count, options.columns))
    objects = value.get("objects") if isinstance(value, dict) else value
    if not isinstance(objects, list) or not all(isinstance(o, dict) and "feature" in o for o in objects):
        raise BadRow(f"holds no features but {shown(text)}; labels are given with --labels")
    return _from_objects(image_id, objects, size_in(text), options)


def _from_objects(image_id: str, objects: list[dict[str, Any]], size: tuple[int, int], options: ReadOptions) -> Row:
    """A detector's raw predictions: a vector for each object, its six box columns where the size is known."""
    parts = [decode64(str(o["feature"]).encode()) for o in objects]
    features = shape_features(b"".join(parts), len(objects), options.columns)
    try:
        boxes = np.array([o["rect"] for o in objects], np.float32).reshape(-1, 4)
    except (KeyError, ValueError, TypeError):
        raise BadRow("an object has no rect of four numbers") from None
    kept = [{key: value for key, value in o.items() if key != "feature"} for o in objects]
    row = Row(image_id, features, boxes, PIXELS, *size, {LABELS: _json_bytes(kept)})
    if all(size) and features.shape[1] == APPEARANCE:
        row.features = np.concatenate([features, six_columns(boxes, *size).astype(features.dtype)], 1)
    return row


def six_columns(boxes: Array, height: int, width: int) -> Array:
    """[n, 4] pixels as Oscar's six: x1/W, y1/H, x2/W, y2/H, w/W, h/H, float32."""
    corners = boxes / np.array([width, height, width, height], np.float32)
    return np.concatenate([corners, corners[:, 2:] - corners[:, :2]], 1).astype(np.float32)


def _json_bytes(value: Any) -> Array:
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), np.uint8)
