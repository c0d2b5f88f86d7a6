"""The index of a store: one Arrow file, mapped into memory, in which an id is found by two binary searches at most."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lavis_ext.errors import IntegrityError, UsageError
from lavis_ext.features.files import read_errors, write_atomic
from lavis_ext.features.ids import hash_of, key_of
from lavis_ext.features.layout import FORMAT, INDEX, Array, Header

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
class Entry:
    """One record of the data file: its id, where its header stands, and the header."""

    image_id: str
    offset: int
    header: Header


def write_index(folder: Path, entries: list[Entry], end: int) -> None:
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
    write_atomic(folder / INDEX, sink.getvalue())


def _sorted_hashes(texts: list[str]) -> tuple[Array, Array]:
    hashes = np.array([hash_of(text) for text in texts], np.uint64)
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    return hashes[order], order


class Index:
    """A mapped index; its columns are views of the file and cost no memory of their own."""

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
                reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
            batch, meta = reader.get_batch(0), json.loads(reader.schema.metadata[META])
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            way_out = "`lavis-ext features index STORE` writes it again from the data"
            raise IntegrityError(str(self.path), f"cannot be read: {error}", way_out) from error
        if meta.get("format") != FORMAT or not batch.schema.equals(SCHEMA):
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
            told = ", ".join(repr(self.id_at(row)) for row in sorted(found)[:4])
            raise UsageError(repr(image_id), f"fits {len(found)} images: {told}", "use the whole id")
        return found[0] if found else None

    def _matches(self, table: tuple[Array, Array], text: str, form: Any) -> list[int]:
        hashes, rows = table
        value = np.uint64(hash_of(text))
        at = int(np.searchsorted(hashes, value))
        found: list[int] = []
        while at < self.rows and hashes[at] == value:
            row = int(rows[at])
            if form(self.id_at(row)) == text:
                found.append(row)
            at += 1
        return found
