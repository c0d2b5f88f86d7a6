"""Tab-separated features: of Oscar and VinVL (3 and 2 columns), and of bottom-up attention, LXMERT and volta.

Arrays are base64. `oscar-offsets` reads an Oscar TSV through the offset map beside it.
"""

from __future__ import annotations

import csv
import json
from codecs import BOM_UTF8
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lavis_ext.common.errors import UsageError
from lavis_ext.common.files import decode_json, disk_errors, read_errors, write_atomic
from lavis_ext.features.formats.base import SideTable, guard, number_of, plain_id, shown, size_in, text_of
from lavis_ext.features.formats.lines import (
    LONGEST,
    MAPPED,
    begins,
    decode64,
    encode64,
    lineidx_path,
    lines_of,
    load_places,
    offsets_of,
    table_of,
    warn_of_stale_map,
    write_lineidx,
    write_lines,
    write_offset_map,
)
from lavis_ext.features.layout import FRACTIONS, NO_BOXES, PIXELS, Array
from lavis_ext.features.store import (
    LABELS,
    BadRow,
    FeatureRow,
    FeatureStore,
    ReadOptions,
    Record,
    Rows,
    Start,
    shape_features,
)

APPEARANCE = 2048


class OscarTsv:
    """Three columns: `image_id`, `num_boxes`, base64 of [n, 2054]; further columns between are skipped."""

    name = "oscar-tsv"

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """Rows of the file, with labels and sizes from the side files that `options` names or that are beside it."""
        sides = SideFiles(path, options)
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
            lineidx = lineidx_path(side)
            if not lineidx.exists():
                with disk_errors(lineidx):
                    write_atomic(lineidx, "".join(f"{at}\n" for _, at in offsets_of(side)))
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


class SideFiles:
    """Labels and sizes of the images of one file, from the files that `options` name or that are beside it."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        hw = path.name.replace(".feature.", ".hw.") if ".feature." in path.name else "hw.tsv"
        labels, sizes = options.labels or _label_path(path), options.sizes or path.with_name(hw)
        for side, given in ((labels, options.labels), (sizes, options.sizes)):
            if given and not side.is_file():
                raise UsageError(str(side), "is not there", "name a file of labels or sizes")
        self._labels = SideTable(labels) if labels.is_file() and labels != path else None
        self._sizes = SideTable(sizes) if sizes.is_file() and sizes != path else None

    def add(self, row: FeatureRow) -> FeatureRow:
        """The row with its labels, its size, and boxes in pixels where the size is known; raises BadRow."""
        text = self._labels.find(row.image_id) if self._labels else None
        if text is not None:
            row.arrays[LABELS] = np.frombuffer(text, np.uint8)
        if not row.height:
            row.height, row.width = size_in(self._sizes.find(row.image_id) if self._sizes else None)
        if not row.height and text is not None:
            row.height, row.width = size_in(text)
        return boxes_of(row)


def boxes_of(row: FeatureRow) -> FeatureRow:
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


def _label_line(record: Record) -> bytes:
    text = record.label_text
    return record.image_id.encode() + b"\t" + (b"[]" if text is None else text) + b"\n"


def parse_row(line: bytes, sides: SideFiles, options: ReadOptions) -> FeatureRow:
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
    return sides.add(FeatureRow(image_id, shape_features(raw, count, options.columns)))


def _from_json(image_id: str, text: bytes, options: ReadOptions) -> FeatureRow:
    try:
        value = decode_json(text)
    except ValueError as error:
        raise BadRow(f"the second column is no JSON ({error}); truncated?") from None
    if isinstance(value, dict) and isinstance(value.get("features"), str):
        count = number_of(value.get("num_boxes", -1), "num_boxes")
        return FeatureRow(image_id, shape_features(decode64(value["features"].encode()), count, options.columns))
    objects = value.get("objects") if isinstance(value, dict) else value
    if not isinstance(objects, list) or not all(isinstance(o, dict) and "feature" in o for o in objects):
        raise BadRow(f"holds no features but {shown(text)}; labels are given with --labels")
    return _from_objects(image_id, objects, size_in(text), options)


def _from_objects(
    image_id: str, objects: list[dict[str, Any]], size: tuple[int, int], options: ReadOptions
) -> FeatureRow:
    """A detector's raw predictions: a vector for each object, its six box columns where the size is known."""
    parts = [decode64(str(o["feature"]).encode()) for o in objects]
    features = shape_features(b"".join(parts), len(objects), options.columns)
    try:
        boxes = np.array([o["rect"] for o in objects], np.float32).reshape(-1, 4)
    except (KeyError, ValueError, TypeError):
        raise BadRow("an object has no rect of four numbers") from None
    kept = [{key: value for key, value in o.items() if key != "feature"} for o in objects]
    try:
        labels = json.dumps(kept, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell and UTF-8 cannot
        labels = json.dumps(kept).encode()
    row = FeatureRow(image_id, features, boxes, PIXELS, *size, {LABELS: np.frombuffer(labels, np.uint8)})
    if all(size) and features.shape[1] == APPEARANCE:
        row.features = np.concatenate([features, six_columns(boxes, *size).astype(features.dtype)], 1)
    return row


def six_columns(boxes: Array, height: int, width: int) -> Array:
    """[n, 4] pixels as Oscar's six: x1/W, y1/H, x2/W, y2/H, w/W, h/H, float32."""
    corners = boxes / np.array([width, height, width, height], np.float32)
    return np.concatenate([corners, corners[:, 2:] - corners[:, :2]], 1).astype(np.float32)


COLUMNS = {
    "butd-tsv": ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"],
    "lxmert-tsv": [
        *("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
        *("num_boxes", "boxes", "features"),
    ],
}
COLUMNS["volta-tsv"] = [*COLUMNS["lxmert-tsv"], "cls_prob", "attrs", "classes"]
VECTORS = {"objects_id": "<i8", "objects_conf": "<f4", "attrs_id": "<i8", "attrs_conf": "<f4"}
MATRICES = {"cls_prob": "<f4", "attrs": "<f4", "classes": "<f4"}
"""Probabilities of every class for every box: imported only with `keep_all`, because nothing reads them."""


class Butd:
    """`butd-tsv`, `lxmert-tsv` or `volta-tsv`: `name` decides the columns and the order of height and width."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.columns = COLUMNS[name]

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """Rows of the file; `b'…'` around a column (Python 2's writer run under Python 3) is taken off."""
        for number, line, end in lines_of(path, start):
            head = line[:256].partition(b"\t")[0].decode("utf-8", "replace")
            yield guard(number, end, head, partial(self._parse, line, options))

    def _parse(self, line: bytes, options: ReadOptions) -> FeatureRow:
        return self.parse(self.split(line), options)

    def parse(self, cells: dict[str, bytes], options: ReadOptions) -> FeatureRow:
        """The cells of one line as a row; raises BadRow."""
        image_id = unquote(cells.get("img_id", cells.get("image_id", b"")))
        return row_of({**cells, "img_id": image_id}, options)

    def split(self, line: bytes) -> dict[str, bytes]:
        """The cells of one line under the names of their columns, `b'…'` taken off; raises BadRow."""
        cells = line.rstrip(b"\r").split(b"\t")
        if len(cells) != len(self.columns):
            raise BadRow(f"expected {len(self.columns)} columns, got {len(cells)}; truncated?")
        return {name: unliteral(cell) for name, cell in zip(self.columns, cells, strict=True)}

    def write(self, store: FeatureStore, path: Path, options: dict[str, Any]) -> list[str]:
        """Write `path`; lines end as those of the store's source did, else as csv ends them (`\\r\\n`)."""
        end = str(options.get("newline") or "\r\n").encode()
        write_lines(store, path, lambda record: b"\t".join(self.cells(record)) + end)
        return []

    def cells(self, record: Record | FeatureRow) -> list[bytes]:
        """The columns of one row; raises UsageError where the store, or the row, lacks one."""
        fields = fields_of(record)
        missing = [name for name in self.columns if name not in fields]
        if missing:
            what = f"has no {', '.join(missing)}, which {self.name} needs"
            raise UsageError(f"image {record.image_id!r}", what, "write butd-tsv, which needs boxes and sizes only")
        return [as_text(fields[name]) for name in self.columns]


def row_of(found: Mapping[str, Any], options: ReadOptions) -> FeatureRow:
    """A row from columns of any of the three, or from a volta LMDB: base64 text, bytes, or arrays; raises BadRow."""
    count = number_of(found.get("num_boxes", -1), "num_boxes")
    height, width = (number_of(found.get(f"img_{k}", found.get(f"image_{k}", 0)), f"img_{k}") for k in "hw")
    features = shape_features(raw_of(found, "features"), count, options.columns)
    boxes = _exact(raw_of(found, "boxes"), "<f4", (count, 4), "boxes")
    arrays = {
        name: _exact(raw_of(found, name), kind, (count,), name) for name, kind in VECTORS.items() if name in found
    }
    if options.keep_all:
        for name, kind in MATRICES.items():
            if name in found:
                arrays[name] = _exact(raw_of(found, name), kind, (count, -1), name)
    image_id = found.get("img_id", found.get("image_id", ""))
    image_id = text_of(image_id) if isinstance(image_id, bytes) else str(image_id)
    return FeatureRow(image_id, features, boxes, PIXELS, height, width, arrays)


def raw_of(found: Mapping[str, Any], name: str) -> bytes:
    """The bytes of one array column."""
    value = found.get(name)
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).tobytes()
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes):
        raise BadRow(f"has no {name}")
    return decode64(unliteral(value))


def _exact(raw: bytes, dtype: str, shape: tuple[int, ...], name: str) -> Array:
    try:
        if -1 in shape and not raw:
            return np.zeros((0, 0), dtype)
        return np.frombuffer(raw, dtype).reshape(shape)
    except ValueError:
        raise BadRow(f"{name}: {len(raw)} bytes cannot be {shape[0]} rows; truncated?") from None


def unliteral(cell: bytes) -> bytes:
    """A cell without the `b'…'` that Python 3 puts around bytes."""
    if len(cell) >= 3 and cell[:2] in (b"b'", b'b"') and cell[-1:] == cell[1:2]:
        return cell[2:-1]
    return cell


def unquote(cell: bytes) -> bytes:
    """An id without the quotes that csv puts around special characters."""
    if not cell.startswith(b'"'):
        return cell
    return next(csv.reader([text_of(cell)], "excel-tab"))[0].encode()


def quote(image_id: str) -> str:
    """An id as csv writes it; raises UsageError where a row of one line cannot hold it."""
    if "\n" in image_id or "\r" in image_id or "\t" in image_id:
        raise UsageError(repr(image_id), "holds a tab or a new line", "export to volta-lmdb or h5")
    return '"' + image_id.replace('"', '""') + '"' if '"' in image_id else image_id


def as_text(value: Any) -> bytes:
    """A column as text: base64 of an array, else the number or the id."""
    if isinstance(value, np.ndarray):
        return encode64(np.ascontiguousarray(value))
    return quote(value).encode() if isinstance(value, str) else str(value).encode()


def fields_of(record: Record | FeatureRow) -> dict[str, Any]:
    """The columns that a record or a row can fill, by name; `boxes` only where they are in pixels."""
    row = record if isinstance(record, FeatureRow) else record.as_row()
    fields: dict[str, Any] = {name: row.arrays[name] for name in (*VECTORS, *MATRICES) if name in row.arrays}
    fields |= {"img_id": row.image_id, "image_id": row.image_id, "num_boxes": len(row.features)}
    fields |= {"features": row.features}
    if row.boxes is not None and row.unit == PIXELS:
        fields["boxes"] = row.boxes
    if row.height and row.width:
        fields |= dict.fromkeys(("img_h", "image_h"), row.height) | dict.fromkeys(("img_w", "image_w"), row.width)
    return fields


def row_of_named(image_id: str, found: Mapping[str, Array], options: ReadOptions) -> FeatureRow:
    """A row from named arrays, as H5, npy and tensorpack hold them; raises BadRow.

    `features` [n, columns]; optional: `boxes` [n, 4] in pixels, `img_h`, `img_w` and the other columns of volta's rows.
    """
    features = found.get("features")
    if features is None or features.ndim != 2 or features.dtype.kind != "f":
        shape = None if features is None else (features.shape, str(features.dtype))
        raise BadRow(f"expected floating features [n, columns], got {shape}")
    if features.dtype.itemsize > 4:
        raise BadRow(f"expected float32 or float16, got {features.dtype}")
    if options.columns and len(features) and features.shape[1] != options.columns:
        raise BadRow(f"expected {options.columns} columns, got {features.shape[1]}")
    height, width = (_size(found, name) for name in ("img_h", "img_w"))
    boxes = found.get("boxes")
    if boxes is not None:
        boxes = _fitting("boxes", np.asarray(boxes, np.float32), len(features))
    kept = [*VECTORS, *(MATRICES if options.keep_all else ())]
    arrays = {name: _fitting(name, found[name], len(features)) for name in kept if name in found}
    return boxes_of(FeatureRow(image_id, features, boxes, NO_BOXES if boxes is None else PIXELS, height, width, arrays))


def _fitting(name: str, array: Array, count: int) -> Array:
    if array.ndim == 0 or len(array) != count or array.dtype.kind not in "iuf":
        raise BadRow(f"{name}: {array.shape} {array.dtype} for {count} boxes")
    return array


def _size(found: Mapping[str, Array], name: str) -> int:
    if name not in found:
        return 0
    if found[name].size != 1:
        raise BadRow(f"{name}: expected one number, got {found[name].shape}")
    return number_of(found[name].item(), name)


class OffsetMap:
    """The rows of an Oscar TSV that its offset map names, in the order of the file, as Oscar's VQA reads them."""

    name = "oscar-offsets"

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """A row that does not begin where the map says, or is another image's, is a Fault; raises IntegrityError."""
        table = table_of(path)
        places = load_places(path)
        sides = SideFiles(table, options)
        with read_errors(table), table.open("rb") as file:
            for number, (image_id, at) in enumerate(places, 1):
                if number > start.line:
                    yield guard(number, number, image_id, partial(_row, file, image_id, at, sides, options))

    def write(self, store: FeatureStore, path: Path, options: dict[str, Any]) -> list[str]:
        """Raises UsageError: a map is written together with its table, by `oscar-tsv`."""
        raise UsageError(self.name, "is read, not written", f"export to oscar-tsv as x{MAPPED}: its map is written too")


def _row(file: BinaryIO, image_id: str, at: int, sides: SideFiles, options: ReadOptions) -> FeatureRow:
    if not begins(file, image_id, at):
        raise BadRow(f"no row of this image begins at byte {at}, where the offset map has it")
    file.seek(at)
    line = file.readline(LONGEST).rstrip(b"\n")
    return parse_row(line if at else line.removeprefix(BOM_UTF8), sides, options)
