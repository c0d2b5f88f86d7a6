"""The files of a store: `rows.bin` (records, each with a header of 64 bytes), `index.arrow` and `store.json`.

A record is header, features, boxes, id, extra arrays, padding to 64 bytes; numbers are little-endian.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lavis_ext.common.errors import IntegrityError, UsageError
from lavis_ext.common.files import decode_json, disk_errors, read_errors, write_atomic, write_json

FORMAT = 1
ROWS, INDEX, ABOUT, FAULTS = "rows.bin", "index.arrow", "store.json", "faults.jsonl"
ALIGN = 64
MAGIC = b"LXR1"
DTYPES = ("float16", "float32")
NO_BOXES, PIXELS, FRACTIONS = 0, 1, 2
UNITS = {NO_BOXES: "", PIXELS: "pixel", FRACTIONS: "fraction"}
_HEADER = struct.Struct("<4sIQIIIIIIIIQQ")
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a record; `length` counts header, body and padding, `crc` covers everything behind itself."""

    length: int
    count: int
    unit: int
    height: int
    width: int
    id_bytes: int
    extra_bytes: int
    source: int
    line: int
    next: int
    crc: int = 0

    def pack(self, crc: int) -> bytes:
        """64 bytes, little-endian."""
        sizes = (self.length, self.count, self.unit, self.height, self.width, self.id_bytes, self.extra_bytes)
        return _HEADER.pack(MAGIC, crc, *sizes, self.source, 0, self.line, self.next)

    def checked(self) -> bytes:
        """The part of the header that the checksum covers."""
        return self.pack(0)[8:]

    @classmethod
    def unpack(cls, data: bytes) -> Header | None:
        """The header in the first 64 bytes of `data`, or None where there is none."""
        if len(data) < _HEADER.size:
            return None
        magic, crc, length, count, unit, height, width, *rest = _HEADER.unpack(data)
        id_bytes, extra_bytes, source, _, line, following = rest
        sizes = (length, count, unit, height, width, id_bytes, extra_bytes)
        return cls(*sizes, source, line, following, crc) if magic == MAGIC else None

    def body_bytes(self, row_bytes: int) -> int:
        """Bytes after the header that the record uses; the rest up to `length` is padding."""
        return self.count * (row_bytes + (16 if self.unit else 0)) + self.id_bytes + self.extra_bytes


def padded(size: int) -> int:
    """`size` rounded up to the alignment of records."""
    return -(-size // ALIGN) * ALIGN


def checksum(header: Header, *parts: bytes | memoryview) -> int:
    """CRC-32 of a header and of the parts of a body."""
    crc = zlib.crc32(header.checked())
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


@dataclass
class StoreInfo:
    """`store.json`: precision and width of the features, and their sources; `columns` is 0 before the first row."""

    dtype: str
    columns: int = 0
    sources: list[dict[str, Any]] = field(default_factory=list)
    format: int = FORMAT

    @property
    def row_bytes(self) -> int:
        """Bytes of one feature row."""
        return self.columns * np.dtype(self.dtype).itemsize

    def save(self, folder: Path) -> None:
        """Write the file atomically; raises DiskError."""
        with disk_errors(folder / ABOUT):
            write_json(folder / ABOUT, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> StoreInfo:
        """Read the file; raises UsageError where `folder` is no store, IntegrityError where the file is broken."""
        path = folder / ABOUT
        try:
            about = cls(**decode_json(path.read_text("utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(str(folder), "is not a feature store", f"a store is a folder that holds {ABOUT}") from None
        except (OSError, ValueError, TypeError) as error:
            raise IntegrityError(str(path), f"cannot be read: {error}", "import the features again") from error
        if about.format != FORMAT or about.dtype not in DTYPES:
            found = f"format {about.format}, {about.dtype}"
            raise IntegrityError(str(path), f"expected format {FORMAT}, got {found}", "use the version that wrote it")
        return about


def pack_extra(arrays: dict[str, Array]) -> bytes:
    """Named arrays as bytes: length of a JSON head, the head `[[name, dtype, shape], …]`, the arrays one by one."""
    if not arrays:
        return b""
    head = json.dumps([[name, a.dtype.str, a.shape] for name, a in arrays.items()]).encode()
    bodies = [np.ascontiguousarray(a).tobytes() for a in arrays.values()]
    return b"".join([struct.pack("<I", len(head)), head, *bodies])


def unpack_extra(data: bytes) -> dict[str, Array]:
    """The arrays that `pack_extra` wrote, as copies."""
    if not data:
        return {}
    at = 4 + struct.unpack_from("<I", data)[0]
    arrays: dict[str, Array] = {}
    for name, dtype, shape in decode_json(data[4:at]):
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(data, dtype, count, at).reshape(shape).copy()
        at += arrays[name].nbytes
    return arrays


_COCO = re.compile(
    r"(?:(?:.*/)?(?:COCO_)?(?:train|val|test)(?:-dev)?20[0-9]{2}[_/])?0*([0-9]{1,18})(?:\.(?:jpg|jpeg|png))?", re.DOTALL
)


def key_of(image_id: str) -> str:
    """The key under which an id is found when its own text is not there.

    COCO's own names have their number without leading zeros: `9`, `000000000009`, `COCO_train2014_000000000009.jpg` and
    `val2017/000000000009.jpg` are all `9`. Every other id is its own key: `cam1_42` and `cam2_42` are two pictures.
    """
    match = _COCO.fullmatch(image_id)
    return match.group(1) if match else image_id


def hash_of(text: str) -> int:
    """64 bits of BLAKE2b over the UTF-8 text, the same on every machine."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


META = b"lavis_ext.features"
SCHEMA = pa.schema(
    [
        ("id", pa.large_string()),
        ("offset", pa.int64()),
        ("count", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("crc", pa.uint32()),
        ("id_hash", pa.uint64()),
        ("id_row", pa.int32()),
        ("key_hash", pa.uint64()),
        ("key_row", pa.int32()),
    ]
)


class UnknownImage(UsageError, KeyError):
    """No image of that id is in the store."""


@dataclass(slots=True)
class StoreEntry:
    """One record of the data file: its id, the offset of its header, and the header."""

    image_id: str
    offset: int
    header: Header


def write_index(folder: Path, entries: list[StoreEntry], end: int) -> None:
    """Write the index of all records up to byte `end` of the data file, whole or not at all; raises DiskError.

    The columns `id_hash` and `key_hash` are sorted; `id_row` and `key_row` beside them say which row each belongs to.
    """
    headers = [e.header for e in entries]
    columns: list[Any] = [
        [e.image_id for e in entries],
        np.array([e.offset for e in entries], np.int64),
        *(np.array([getattr(h, name) for h in headers], np.int32) for name in ("count", "height", "width")),
        np.array([h.crc for h in headers], np.uint32),
        *_sorted_hashes([e.image_id for e in entries]),
        *_sorted_hashes([key_of(e.image_id) for e in entries]),
    ]
    meta = {META: json.dumps({"format": FORMAT, "rows": len(entries), "end": end}).encode()}
    schema = SCHEMA.with_metadata(meta)
    arrays = [pa.array(values, type=f.type) for values, f in zip(columns, schema, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    with disk_errors(folder / INDEX):
        write_atomic(folder / INDEX, sink.getvalue())


def _sorted_hashes(texts: list[str]) -> tuple[Array, Array]:
    hashes = np.array([hash_of(text) for text in texts], np.uint64)
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    return hashes[order], order


class Index:
    """The index, mapped: columns are views of the file, an id is found by at most two binary searches over hashes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / INDEX
        batch, meta = self._open()
        self.rows: int = meta["rows"]
        self.end: int = meta["end"]
        self.ids = batch.column("id")
        views = {f.name: batch.column(f.name).to_numpy() for f in SCHEMA if f.name != "id"}
        self.offset, self.count, self.crc = views["offset"], views["count"], views["crc"]
        self.height, self.width = views["height"], views["width"]
        self._exact = (views["id_hash"], views["id_row"])
        self._keyed = (views["key_hash"], views["key_row"])

    def _open(self) -> tuple[pa.RecordBatch, dict[str, Any]]:
        try:
            with read_errors(self.path):
                mapped = pa.memory_map(str(self.path))
            reader = pa.ipc.open_file(mapped)
            batch, meta = reader.get_batch(0), decode_json(reader.schema.metadata[META])
            batch.validate(full=True)  # Arrow trusts its offsets, and ends the process at a damaged one
            fits = meta["rows"] == batch.num_rows and isinstance(meta["end"], int)
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            way_out = "`lavis-ext features index STORE` writes it again from the data"
            raise IntegrityError(str(self.path), f"cannot be read: {error}", way_out) from error
        if meta.get("format") != FORMAT or not batch.schema.equals(SCHEMA) or not fits:
            raise IntegrityError(str(self.path), "has another form than this version reads", "import again")
        return batch, meta

    def id_at(self, row: int) -> str:
        """The id of a row as its source wrote it."""
        text: str = self.ids[row].as_py()
        return text

    def find(self, image_id: str) -> int | None:
        """The row of an id: by its own text, else by its key; raises UsageError where the key fits several rows."""
        found = self._matches(self._exact, image_id, str)
        if found:
            return found[0]
        key = key_of(image_id)
        found = self._matches(self._keyed, key, key_of)
        if len(found) > 1:
            some = ", ".join(repr(self.id_at(row)) for row in sorted(found)[:4])
            raise UsageError(repr(image_id), f"fits {len(found)} images: {some}", "use the whole id")
        return found[0] if found else None

    def _matches(self, table: tuple[Array, Array], text: str, form: Any) -> list[int]:
        hashes, rows = table
        value = np.uint64(hash_of(text))
        # two texts may share a hash, so each candidate's own text is compared
        at = int(np.searchsorted(hashes, value))
        found: list[int] = []
        while at < self.rows and hashes[at] == value:
            row = int(rows[at])
            if form(self.id_at(row)) == text:
                found.append(row)
            at += 1
        return found
