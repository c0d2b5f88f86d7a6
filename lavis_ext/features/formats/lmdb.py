"""LMDB formats: volta's (pickled rows of base64 text by image number) and tensorpack's (msgpack lists, read only).

Pickles go through the restricted reader (`restricted.py`).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext.common.errors import ConfigError, IntegrityError, UsageError
from lavis_ext.common.files import disk_errors, to_disk_error
from lavis_ext.features.formats.base import guard, need, shown
from lavis_ext.features.formats.lines import growing
from lavis_ext.features.formats.restricted import load_plain
from lavis_ext.features.formats.tsv import as_text, fields_of, row_of, row_of_named, unliteral
from lavis_ext.features.layout import Array, key_of
from lavis_ext.features.store import BadRow, FeatureRow, FeatureStore, ReadOptions, Record, Rows, Start

KEYS = b"keys"
COMMIT_ROWS = 256
FIRST_MAP, GROWTH = 1 << 26, 2
"""Bytes of a new map, and the factor by which it grows when it is full."""
NEEDED = ("img_h", "img_w", "num_boxes", "boxes", "features")


class VoltaLmdb:
    """A folder with `data.mdb` (or that file); the entry `keys` holds the pickled list of all keys."""

    name = "volta-lmdb"

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """Entries in the order of their keys; raises UnsafeError (exit code 10) at a pickle that is more than data."""
        with opened(path) as environment, environment.begin(buffers=False) as reading:
            number = 0
            for key in reading.cursor().iternext(values=False):
                if key == KEYS:
                    continue
                number += 1
                if number <= start.line:
                    continue
                name = key.decode("utf-8", "replace")
                yield guard(number, number, name, partial(_parse, path, name, reading.get(key), options))

    def write(self, store: FeatureStore, path: Path, options: dict[str, Any]) -> list[str]:
        """Write the folder `path`; a killed run is resumed behind the entries that it committed."""
        lmdb = need("lmdb", self.name)
        keys = _keys_of(store)
        with growing(store, path) as part:
            with disk_errors(path):
                part.mkdir(exist_ok=True)
            size = map_size(part)
            with lmdb.open(str(part), map_size=size) as environment:
                writer = LmdbWriter(lmdb, environment, size, path)
                for begin in range(environment.stat()["entries"], len(store), COMMIT_ROWS):
                    rows = range(begin, min(begin + COMMIT_ROWS, len(store)))
                    writer.put([(keys[row], _value(store.at(row))) for row in rows])
                writer.put([(KEYS, pickle.dumps(keys))])
                writer.sync()
        return []


def map_size(folder: Path) -> int:
    """The first of FIRST_MAP, FIRST_MAP · GROWTH, … bytes that hold what is in the folder already."""
    data, size = folder / "data.mdb", FIRST_MAP
    while data.exists() and size < data.stat().st_size:
        size *= GROWTH
    return size


class LmdbWriter:
    """Puts entries into an environment whose map grows when it is full; what LMDB cannot write is a DiskError."""

    def __init__(self, lmdb: Any, environment: Any, size: int, path: Path) -> None:
        self._lmdb, self._environment, self._size, self._path = lmdb, environment, size, path

    def put(self, entries: list[tuple[bytes, bytes]]) -> None:
        """One transaction."""
        while True:
            try:
                with self._errors(), self._environment.begin(write=True) as writing:
                    for key, value in entries:
                        writing.put(key, value)
                return
            except self._lmdb.MapFullError:
                self._size *= GROWTH
                self._environment.set_mapsize(self._size)

    def sync(self) -> None:
        """Flush everything to the disk; raises DiskError."""
        with self._errors():
            self._environment.sync(True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._lmdb.MapFullError:
            raise
        except self._lmdb.Error as error:
            raise to_disk_error(error, self._path, "choose another folder") from error


@contextmanager
def opened(path: Path, form: str = "volta-lmdb") -> Iterator[Any]:
    """A read-only environment without a lock file, so that the file may be on a read-only disk.

    Raises IntegrityError where it is no LMDB, ConfigError where lmdb is not installed (for the format `form`).
    """
    lmdb = need("lmdb", form)
    try:
        options = {"subdir": path.is_dir(), "readonly": True, "lock": False, "readahead": False, "create": False}
        with lmdb.open(str(path), **options) as environment:
            data = path / "data.mdb" if path.is_dir() else path
            pages, size = environment.info()["last_pgno"] + 1, environment.stat()["psize"]
            if pages * size > data.stat().st_size:  # LMDB maps the file: reading behind its end kills the process
                raise IntegrityError(str(path), "is cut off", "fetch or make it again")
            yield environment
    except lmdb.Error as error:
        raise IntegrityError(
            str(path), f"cannot be read as LMDB: {error}", "name the folder that holds data.mdb"
        ) from error


def _parse(path: Path, key: str, data: bytes, options: ReadOptions) -> FeatureRow:
    value = load_plain(data, f"{path}, entry {key}")
    if not isinstance(value, dict):
        raise BadRow(f"expected a dict, got a {type(value).__name__}")
    found = {k: unliteral(v.encode()).decode() if isinstance(v, str) else v for k, v in value.items()}
    found.setdefault("num_boxes", len(found["features"]) if hasattr(found.get("features"), "ndim") else -1)
    found.setdefault("img_id", key)
    return row_of(found, options)


def key_in_lmdb(image_id: str) -> bytes:
    """The key of an image: the number of a COCO id, else the id itself."""
    return (key_of(image_id) if image_id.startswith("COCO_") else image_id).encode()


def _keys_of(store: FeatureStore) -> list[bytes]:
    keys = [key_in_lmdb(image_id) for image_id in store]
    if KEYS in keys or len(set(keys)) != len(keys) or max(map(len, keys), default=0) > 511:
        what = "has ids that become one key, a key of its own (`keys`), or a key of more than 511 bytes"
        raise UsageError(str(store.path), what, "export to lxmert-tsv or h5")
    return keys


def _value(record: Record) -> bytes:
    """The pickled dict of text that volta's reader expects."""
    fields = {name: value for name, value in fields_of(record).items() if not name.startswith("image_")}
    if missing := [name for name in NEEDED if name not in fields]:
        what = f"has no {', '.join(missing)}, which volta's reader needs"
        raise UsageError(f"image {record.image_id!r}", what, "import with sizes and boxes in pixels")
    texts = {n: v if isinstance(v, str) else as_text(v).decode() for n, v in fields.items()}
    return pickle.dumps(texts)


TENSORPACK_KEYS = b"__keys__"
SHORT = ("cls_prob",)
LONG = ("cls_prob", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "attrs")
TAIL = ("boxes", "num_boxes", "img_h", "img_w", "img_id", "caption")
"""A row is: features, then SHORT (ViLBERT, volta), LONG (volta's later files) or nothing, then TAIL."""
ROWS = {1 + len(middle) + len(TAIL): ("features", *middle, *TAIL) for middle in ((), SHORT, LONG)}
PLAIN = re.compile(rb"[<>|=]?[biuf]\d{1,2}")
ARRAY, CAPTION = b"nd", "caption"


class TensorpackLmdb:
    """A folder with `data.mdb`, or one file: msgpack lists by number, as volta and ViLBERT have Conceptual Captions.

    The image id is the one in the row; the row's caption becomes an extra array.
    """

    name = "tensorpack-lmdb"

    def read(self, path: Path, options: ReadOptions, start: Start) -> Rows:
        """Entries in the order of their keys; arrays of objects, which hold pickles, are refused by row."""
        unpack = need("msgpack", self.name).unpackb
        with opened(path, self.name) as environment, environment.begin(buffers=False) as reading:
            number = 0
            for key in reading.cursor().iternext(values=False):
                if key == TENSORPACK_KEYS:
                    continue
                number += 1
                if number > start.line:
                    name = key.decode("utf-8", "replace")
                    yield guard(number, number, name, partial(_parse_tensorpack, unpack, reading.get(key), options))

    def write(self, store: FeatureStore, path: Path, options: dict[str, Any]) -> list[str]:
        """Raises UsageError: the format is only read."""
        raise UsageError(self.name, "is read, not written", "export to volta-lmdb")


def is_tensorpack(path: Path) -> bool:
    """Whether an LMDB holds tensorpack's list of keys; False where lmdb is not installed."""
    try:
        with opened(path, TensorpackLmdb.name) as environment, environment.begin() as reading:
            return reading.get(TENSORPACK_KEYS) is not None
    except (IntegrityError, ConfigError):
        return False


def _parse_tensorpack(unpack: Any, data: bytes, options: ReadOptions) -> FeatureRow:
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
