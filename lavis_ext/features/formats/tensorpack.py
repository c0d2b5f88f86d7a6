"""tensorpack's LMDB, as volta and ViLBERT have Conceptual Captions: msgpack lists by number, `__keys__` beside them."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext.errors import ConfigError, IntegrityError, UsageError
from lavis_ext.features.formats.base import guard, shown
from lavis_ext.features.formats.named import row_of_named
from lavis_ext.features.formats.optional import need
from lavis_ext.features.formats.volta_lmdb import opened
from lavis_ext.features.layout import Array
from lavis_ext.features.row import BadRow, ReadOptions, Row, Rows, Start
from lavis_ext.features.store import FeatureStore

KEYS = b"__keys__"
SHORT = ("cls_prob",)
LONG = ("cls_prob", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "attrs")
TAIL = ("boxes", "num_boxes", "img_h", "img_w", "img_id", "caption")
"""A row is: features, then SHORT (ViLBERT, volta), LONG (volta's later files) or nothing, then TAIL."""
ROWS = {1 + len(middle) + len(TAIL): ("features", *middle, *TAIL) for middle in ((), SHORT, LONG)}
PLAIN = re.compile(rb"[<>|=]?[biuf]\d{1,2}")
ARRAY, CAPTION = b"nd", "caption"


class TensorpackLmdb:
    """A folder with `data.mdb`, or a single file; the id is the one in the row, and its caption is kept."""

    name = "tensorpack-lmdb"

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """Entries in the order of their keys; arrays of objects, which hold pickles, are refused by row."""
        unpack = need("msgpack", self.name).unpackb
        with opened(path, self.name) as environment, environment.begin(buffers=False) as reading:
            number = 0
            for key in reading.cursor().iternext(values=False):
                if key == KEYS:
                    continue
                number += 1
                if number > start.line:
                    name = key.decode("utf-8", "replace")
                    yield guard(number, number, name, partial(_parse, unpack, reading.get(key), options))

    def write(self, store: FeatureStore, path: Path, options: dict[str, Any]) -> list[str]:
        """Nobody needs more of them: raises UsageError."""
        raise UsageError(self.name, "is read, not written", "export to volta-lmdb")


def is_tensorpack(path: Path) -> bool:
    """Whether an LMDB holds tensorpack's list of keys; False where lmdb is not installed to look."""
    try:
        with opened(path, TensorpackLmdb.name) as environment, environment.begin() as reading:
            return reading.get(KEYS) is not None
    except (IntegrityError, ConfigError):
        return False


def _parse(unpack: Any, data: bytes, options: ReadOptions) -> Row:
    try:
        cells = unpack(data, raw=True, strict_map_key=False, object_hook=_array)
    except BadRow:
        raise
    except Exception as error:  # msgpack raises many kinds, of its own and of Python
        raise BadRow(f"is no msgpack of plain values: {shown(error)}") from error
    if not isinstance(cells, (list, tuple)) or len(cells) not in ROWS:
        count = len(cells) if isinstance(cells, (list, tuple)) else type(cells).__name__
        raise BadRow(f"expected a list of {' or '.join(map(str, ROWS))} values, got {count}")
    found = dict(zip(ROWS[len(cells)], cells, strict=True))
    caption = np.frombuffer(_text(found.pop(CAPTION), CAPTION).encode(), np.uint8)
    image_id = _text(found.pop("img_id"), "img_id")
    count = _number(found.pop("num_boxes"), "num_boxes")
    named = {name: _field(name, value, count) for name, value in found.items()}
    row = row_of_named(image_id, named, options)
    row.arrays[CAPTION] = caption
    return row


def _field(name: str, value: Any, count: int) -> Array:
    """A value as an array; those by box are cut to the boxes that there are (upstream pads some to 36)."""
    if name in ("img_h", "img_w"):
        return np.array(_number(value, name))
    if not isinstance(value, np.ndarray):
        raise BadRow(f"{name}: expected an array, got {shown(value)}")
    if len(value) < count:
        raise BadRow(f"{name}: {len(value)} rows for {count} boxes")
    return value[:count]


def _array(found: dict[Any, Any]) -> Any:
    """msgpack_numpy's form of an array or a number: `nd`, `type`, `kind`, `shape`, `data`."""
    if ARRAY not in found:
        return found
    code, data = found.get(b"type"), found.get(b"data")
    if found.get(b"kind") not in (b"", None) or not isinstance(code, bytes) or not PLAIN.fullmatch(code):
        raise BadRow("holds an array that is not of plain numbers; nothing of it was executed")
    if not isinstance(data, bytes):
        raise BadRow("holds an array without data")
    array = np.frombuffer(data, code.decode())
    return array.reshape(found.get(b"shape", ())) if found[ARRAY] else array[0]


def _text(value: Any, name: str) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (str, int)):
        return str(value)
    raise BadRow(f"{name}: expected text, got {shown(value)}")


def _number(value: Any, name: str) -> int:
    """A number that was written as one, as numpy's, or as text."""
    try:
        return int(value)
    except (TypeError, ValueError):
        raise BadRow(f"{name}: expected a number, got {shown(value)}") from None
