"""volta's LMDB: pickled rows of base64 text under the image's number, read by the restricted reader."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lavis_ext.errors import IntegrityError, UsageError
from lavis_ext.features.files import disk_errors
from lavis_ext.features.formats.base import guard
from lavis_ext.features.formats.butd import as_text, fields_of, row_of, unliteral
from lavis_ext.features.formats.growing import growing
from lavis_ext.features.formats.optional import need
from lavis_ext.features.formats.restricted import load_plain
from lavis_ext.features.ids import key_of
from lavis_ext.features.row import BadRow, ReadOptions, Row, Rows, Start
from lavis_ext.features.store import FeatureStore, Record
from lavis_ext.files import to_disk_error

KEYS = b"keys"
COMMIT_ROWS = 256
FIRST_MAP, GROWTH = 1 << 26, 2
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
        """Write the folder `path`; a killed run goes on behind the entries that it committed."""
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
    """What the map of an environment that is written begins with: the first of the sizes that hold what is there."""
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
        """Everything is on the disk."""
        with self._errors():
            self._environment.sync(True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._lmdb.MapFullError:
            raise
        except self._lmdb.Error as error:
            raise to_disk_error(error, self._path, "free space, or choose another folder") from error


@contextmanager
def opened(path: Path, form: str = "volta-lmdb") -> Iterator[Any]:
    """A reading environment without locks: the file may lie on a disk that cannot be written.

    Raises IntegrityError, and ConfigError, with the name of the format, where lmdb is not installed.
    """
    lmdb = need("lmdb", form)
    try:
        options = {"subdir": path.is_dir(), "readonly": True, "lock": False, "readahead": False, "create": False}
        with lmdb.open(str(path), **options) as environment:
            yield environment
    except lmdb.Error as error:
        raise IntegrityError(
            str(path), f"cannot be read as LMDB: {error}", "name the folder that holds data.mdb"
        ) from error


def _parse(path: Path, key: str, data: bytes, options: ReadOptions) -> Row:
    value = load_plain(data, f"{path}, entry {key}")
    if not isinstance(value, dict):
        raise BadRow(f"expected a dict, got a {type(value).__name__}")
    found = {k: _scalar(v) for k, v in value.items()}
    found.setdefault("num_boxes", len(found["features"]) if hasattr(found.get("features"), "ndim") else -1)
    found.setdefault("img_id", key)
    return row_of(found, options)


def _scalar(value: Any) -> Any:
    """Text as numbers expect it; `b'…'` taken off."""
    return unliteral(value.encode()).decode() if isinstance(value, str) else value


def key_in_lmdb(image_id: str) -> bytes:
    """The key of an image: COCO's number, else the id itself."""
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
