"""The tab-separated rows of bottom-up attention (6 columns), LXMERT (10) and volta (13), arrays in base64."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext.errors import UsageError
from lavis_ext.features.formats.base import guard, number_of, text_of
from lavis_ext.features.formats.lines import decode64, encode64, lines_of, write_lines
from lavis_ext.features.layout import PIXELS, Array
from lavis_ext.features.row import BadRow, ReadOptions, Row, Rows, Start, shape_features
from lavis_ext.features.store import FeatureStore, Record

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
"""Probabilities of every class for every box: kept only where asked for, because nothing reads them."""


class Butd:
    """One of the three; `name` decides how many columns there are, and the order of height and width."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.columns = COLUMNS[name]

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """Rows of the file; `b'…'` around a column (Python 2's writer run under Python 3) is taken off."""
        for number, line, end in lines_of(path, start):
            head = line[:256].partition(b"\t")[0].decode("utf-8", "replace")
            yield guard(number, end, head, partial(self._parse, line, options))

    def _parse(self, line: bytes, options: ReadOptions) -> Row:
        return self.parse(self.split(line), options)

    def parse(self, cells: dict[str, bytes], options: ReadOptions) -> Row:
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

    def cells(self, record: Record | Row) -> list[bytes]:
        """The columns of one row; raises UsageError where the store, or the row, lacks one."""
        fields = fields_of(record)
        missing = [name for name in self.columns if name not in fields]
        if missing:
            what = f"has no {', '.join(missing)}, which {self.name} needs"
            raise UsageError(f"image {record.image_id!r}", what, "write butd-tsv, which needs boxes and sizes only")
        return [as_text(fields[name]) for name in self.columns]


def row_of(found: Mapping[str, Any], options: ReadOptions) -> Row:
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
    return Row(image_id, features, boxes, PIXELS, height, width, arrays)


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


def fields_of(record: Record | Row) -> dict[str, Any]:
    """What a record or a row has under the names of all columns; boxes in pixels only."""
    row = record if isinstance(record, Row) else record.as_row()
    fields: dict[str, Any] = {name: row.arrays[name] for name in (*VECTORS, *MATRICES) if name in row.arrays}
    fields |= {"img_id": row.image_id, "image_id": row.image_id, "num_boxes": len(row.features)}
    fields |= {"features": row.features}
    if row.boxes is not None and row.unit == PIXELS:
        fields["boxes"] = row.boxes
    if row.height and row.width:
        fields |= dict.fromkeys(("img_h", "image_h"), row.height) | dict.fromkeys(("img_w", "image_w"), row.width)
    return fields
