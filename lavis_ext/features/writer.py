"""A store that is written: records are appended, what a kill cut off is dropped, the index comes last."""

from __future__ import annotations

import json
import mmap
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lavis_ext.common.errors import IntegrityError, UsageError
from lavis_ext.features.files import disk_errors
from lavis_ext.features.layout import (
    ALIGN,
    DTYPES,
    INDEX,
    ROWS,
    Array,
    Header,
    StoreEntry,
    StoreInfo,
    checksum,
    pack_extra,
    padded,
    write_index,
)
from lavis_ext.features.store import BadRow, FeatureRow, Start, cast_rows
from lavis_ext.fetch.lock import Ownership
from lavis_ext.fetch.transfer import Policy

# The end of a data file, written by a thread of its own, so that decoding does not wait for the disk.


BATCH = 1 << 20
WAITING = 2
SYNC = 64 << 20
PIECES = 512
Piece = bytes | memoryview


class AppendFile:
    """Appends to a file from byte `end` on, what lies behind it is cut off; raises OSError, perhaps one call later.

    At most two batches of 1 MiB wait to be written; every 64 MiB are flushed to the disk while more is decoded.
    """

    def __init__(self, path: Path, end: int) -> None:
        self._file = path.open("r+b", buffering=0)
        self._file.truncate(end)
        self._file.seek(end)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feature-store")
        self._running: deque[Future[None]] = deque()
        self._pieces: list[Piece] = []
        self._held = 0
        self._unsynced = 0

    def write(self, pieces: Sequence[Piece]) -> None:
        """Take pieces of a record; they must not change any more."""
        self._pieces += pieces
        self._held += sum(map(len, pieces))
        if self._held >= BATCH:
            self._hand_over()

    def _hand_over(self) -> None:
        while len(self._running) >= WAITING:
            self._running.popleft().result()
        pieces, self._pieces, self._held = self._pieces, [], 0
        self._running.append(self._pool.submit(self._put, pieces))

    def _put(self, pieces: list[Piece]) -> None:
        for begin in range(0, len(pieces), PIECES):
            some = pieces[begin : begin + PIECES]
            written = os.writev(self._file.fileno(), some)  # without a copy, and without the interpreter's lock
            self._unsynced += written
            if written < sum(map(len, some)):
                self._put_rest(memoryview(b"".join(some))[written:])
        if self._unsynced >= SYNC:
            os.fdatasync(self._file.fileno())
            self._unsynced = 0

    def _put_rest(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]

    def flush(self, to_disk: bool = False) -> None:
        """Return when everything is in the file, and on the disk if asked."""
        self._hand_over()
        while self._running:
            self._running.popleft().result()
        if to_disk:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let the file go; what was not flushed is written if it can be."""
        try:
            self.flush()
        finally:
            self._pool.shutdown(wait=True)
            self._file.close()


class StoreWriter:
    """Appends rows to a store, as a context manager; the index is written when the block ends without an error.

    A new store gets `dtype`; one that exists keeps its own, and another `dtype` raises UsageError. Whole records of a
    run that was killed are kept. Raises OwnedError while another process writes here.
    """

    def __init__(self, path: str | Path, dtype: str | None = None) -> None:
        self.path = Path(path)
        self._wanted = dtype
        self._stack = ExitStack()
        self._ended: set[int] = set()

    def __enter__(self) -> StoreWriter:
        if self._wanted not in (None, *DTYPES):
            raise UsageError(str(self._wanted), "is not a precision of a store", f"one of {', '.join(DTYPES)}")
        with self._stack:
            self._begin()
            self._stack = self._stack.pop_all()
        return self

    def _begin(self) -> None:
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            owner = self.path / ".owner"
            self._stack.enter_context(Ownership(owner, self.path / ROWS, Policy(owner_wait=0, owner_stall=0)))
            self.about = self._about()
            (self.path / ROWS).touch()
            self.entries = list(scan(self.path, self.about))
            self.end = self.entries[-1].offset + self.entries[-1].header.length if self.entries else 0
            self._sink = AppendFile(self.path / ROWS, self.end)
        self._rows = {entry.image_id: row for row, entry in enumerate(self.entries)}

    def _about(self) -> StoreInfo:
        if not any(p.name[0] != "." for p in self.path.iterdir()):
            about = StoreInfo(self._wanted or "float32")
            about.save(self.path)
            return about
        about = StoreInfo.load(self.path)
        if self._wanted not in (None, about.dtype):
            raise UsageError(str(self.path), f"holds {about.dtype}, not {self._wanted}", "name another store")
        return about

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack, disk_errors(self.path), closing(self._sink):
            if kind is None:
                self.commit()

    def commit(self) -> None:
        """Make everything that was appended visible to readers that open the store from now on."""
        with disk_errors(self.path):
            self._sink.flush(to_disk=True)
        write_index(self.path, self.entries, self.end)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._rows

    def append(self, row: FeatureRow, source: int = 0) -> None:
        """Write one row; raises BadRow (a ValueError) where its numbers do not fit each other or the store."""
        if row.image_id in self._rows:
            raise BadRow(f"the image is in the store already, from row {self._header_of(row.image_id).line}")
        features = self._checked(row)
        boxes = [] if row.boxes is None else [np.array(row.boxes, np.float32)]
        name, extra = row.image_id.encode("utf-8"), pack_extra(row.arrays)
        parts: list[Piece] = [a.data.cast("B") if a.size else b"" for a in (features, *boxes)]
        used = ALIGN + sum(len(p) for p in parts) + len(name) + len(extra)
        sizes = (padded(used), len(features), row.unit, row.height, row.width, len(name), len(extra))
        header = Header(*sizes, source, row.line, row.next)
        header = replace(header, crc=checksum(header, *parts, name + extra))
        with disk_errors(self.path):
            self._sink.write([header.pack(header.crc), *parts, name, extra, bytes(padded(used) - used)])
        self._rows[row.image_id] = len(self.entries)
        self.entries.append(StoreEntry(row.image_id, self.end, header))
        self.end += header.length

    def _checked(self, row: FeatureRow) -> Array:
        n = len(row.features)
        if row.features.ndim != 2 or (row.boxes is not None and row.boxes.shape != (n, 4)):
            shapes = f"features {row.features.shape}, boxes {None if row.boxes is None else row.boxes.shape}"
            raise BadRow(f"expected features [n, columns] and boxes [n, 4], got {shapes}")
        if (row.boxes is None) != (row.unit == 0) or not row.image_id:
            raise BadRow("boxes need a unit, and an image needs an id")
        columns = row.features.shape[1]
        if columns and not self.about.columns:
            self.about.columns = columns
            self.about.save(self.path)
        if columns != self.about.columns and (n or columns):
            raise BadRow(f"expected {self.about.columns} columns as in the rows before, got {columns}")
        features = cast_rows(row.features, self.about.dtype)
        # The sink writes later, and the caller may use its array again.
        return features.copy() if features.flags.writeable and np.may_share_memory(features, row.features) else features

    def _header_of(self, image_id: str) -> Header:
        return self.entries[self._rows[image_id]].header

    def same(self, row: FeatureRow) -> bool:
        """Whether the image of that id in the store has just these features."""
        entry = self.entries[self._rows[row.image_id]]
        with disk_errors(self.path):
            self._sink.flush()
        dtype = np.dtype(self.about.dtype)
        size = entry.header.count * self.about.row_bytes
        with (self.path / ROWS).open("rb") as file:
            file.seek(entry.offset + ALIGN)
            there = np.frombuffer(file.read(size), dtype)
        return len(row.features) == entry.header.count and np.array_equal(
            there, cast_rows(row.features, self.about.dtype).ravel(), equal_nan=True
        )

    def start_of(self, source: int) -> Start:
        """Where a source is to be read on: behind the last row of it that is in the store."""
        last = next((e.header for e in reversed(self.entries) if e.header.source == source), None)
        return Start(last.line, last.next) if last else Start()


def create_store(path: str | Path, dtype: str = "float32") -> StoreWriter:
    """A writer for a new store: `with create_store("features") as writer: writer.append(Row(…))`.

    Raises UsageError, when it is entered, where a store of another precision is.
    """
    return StoreWriter(path, dtype)


def scan(folder: Path, about: StoreInfo) -> Iterator[StoreEntry]:
    """Every whole record of the data file in order, by its headers alone.

    What the index covers must be whole, else IntegrityError; of what came after it, the checksums are tried, and the
    first record that is not whole ends the file.
    """
    covered = _covered(folder)
    rows, offset = folder / ROWS, 0
    size = rows.stat().st_size
    if not size:
        return
    with rows.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while offset < size:
            header = Header.unpack(data[offset : offset + ALIGN])
            if header is None or not _whole(data, header, offset, about, trusted=offset < covered):
                break
            start = offset + ALIGN + header.body_bytes(about.row_bytes) - header.id_bytes - header.extra_bytes
            yield StoreEntry(data[start : start + header.id_bytes].decode(), offset, header)
            offset += header.length
    if offset < covered:
        way_out = "`lavis-ext features verify STORE` names what is damaged; import again into another store"
        raise IntegrityError(str(rows), f"no whole record at byte {offset}", way_out)


def _covered(folder: Path) -> int:
    from lavis_ext.features.layout import Index

    return Index(folder).end if (folder / INDEX).is_file() else 0


def _whole(data: mmap.mmap, header: Header, offset: int, about: StoreInfo, trusted: bool) -> bool:
    used = header.body_bytes(about.row_bytes)
    if header.length != padded(ALIGN + used) or offset + header.length > len(data):
        return False
    if trusted:
        return True
    with memoryview(data) as view, view[offset + ALIGN : offset + ALIGN + used] as body:
        return checksum(header, body) == header.crc


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file of ours; a torn last line is passed over."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
