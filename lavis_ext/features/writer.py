"""Writing a store: records are appended, an incomplete record of a killed run is cut off, the index is written last."""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lavis_ext.common.errors import IntegrityError, UsageError
from lavis_ext.common.files import decode_json, disk_errors
from lavis_ext.features.layout import (
    ALIGN,
    DTYPES,
    INDEX,
    ROWS,
    Array,
    Header,
    Index,
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

BATCH = 1 << 20
"""Bytes that are collected before they are handed to the writing thread."""
WAITING = 2
"""Batches that may wait for the disk; then `write` waits too, which bounds the memory."""
SYNC = 64 << 20
PIECES = 512
"""Pieces a call of `writev`; Linux takes 1,024 (IOV_MAX)."""
Piece = bytes | memoryview


class AppendFile:
    """Appends to a file from byte `end` on, which it truncates there, in a thread, so that decoding does not wait.

    At most two batches of 1 MiB wait to be written; every 64 MiB are flushed to the disk. An OSError of a batch is
    raised by a later call. `require` raises where another process has taken over: it is called before each write.
    """

    def __init__(self, path: Path, end: int, require: Callable[[], None] = lambda: None) -> None:
        self._require = require
        self._file = path.open("r+b", buffering=0)
        require()
        self._file.truncate(end)
        self._file.seek(end)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feature-store")
        self._running: deque[Future[None]] = deque()
        self._pieces: list[Piece] = []
        self._held = 0
        self._unsynced = 0

    def write(self, pieces: Sequence[Piece]) -> None:
        """Queue the pieces of a record, which must not be changed afterwards."""
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
            self._require()
            written = os.writev(self._file.fileno(), some)  # without a copy, and without the interpreter's lock
            self._unsynced += written
            if written < sum(map(len, some)):
                rest = memoryview(b"".join(some))[written:]
                while rest:
                    rest = rest[self._file.write(rest) :]
        if self._unsynced >= SYNC:
            os.fdatasync(self._file.fileno())
            self._unsynced = 0

    def flush(self, to_disk: bool = False) -> None:
        """Return when everything is in the file, and on the disk if asked."""
        self._hand_over()
        while self._running:
            self._running.popleft().result()
        if to_disk:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write what is queued, if that succeeds, and close the file."""
        try:
            self.flush()
        finally:
            self._pool.shutdown(wait=True)
            self._file.close()


class StoreWriter:
    """Appends rows to a store, as a context manager; the index is written when the block ends without an error.

    A new store gets `dtype`; one that exists keeps its own, and another `dtype` raises UsageError. Whole records of a
    run that was killed are kept. Raises OwnedError while another process writes here, and where one has taken over.
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
            policy = Policy(owner_wait=0, owner_stall=0)
            self._owner = self._stack.enter_context(Ownership(owner, self.path / ROWS, policy))
            self.about = self._about()
            (self.path / ROWS).touch()
            self.entries = list(scan(self.path, self.about))
            self.end = self.entries[-1].offset + self.entries[-1].header.length if self.entries else 0
            self._sink = AppendFile(self.path / ROWS, self.end, self._owner.require)
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
        self._owner.require()
        write_index(self.path, self.entries, self.end)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._rows

    def append(self, row: FeatureRow, source: int = 0) -> None:
        """Write one row; raises BadRow (a ValueError) where its numbers do not fit each other or the store."""
        if row.image_id in self._rows:
            raise BadRow(f"the image is in the store already, from row {self._entry(row.image_id).header.line}")
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
            self._owner.require()
            self.about.save(self.path)
        if columns != self.about.columns and (n or columns):
            raise BadRow(f"expected {self.about.columns} columns as in the rows before, got {columns}")
        features = cast_rows(row.features, self.about.dtype)
        # The sink writes later, and the caller may use its array again.
        return features.copy() if features.flags.writeable and np.may_share_memory(features, row.features) else features

    def _entry(self, image_id: str) -> StoreEntry:
        return self.entries[self._rows[image_id]]

    def same(self, row: FeatureRow) -> bool:
        """Whether the store has the same features, bit for bit, under that id (which must be in it)."""
        entry = self._entry(row.image_id)
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
        """Where to resume reading a source: behind its last row that is in the store."""
        last = next((e.header for e in reversed(self.entries) if e.header.source == source), None)
        return Start(last.line, last.next) if last else Start()


def create_store(path: str | Path, dtype: str = "float32") -> StoreWriter:
    """A writer for a new store: `with create_store("features") as writer: writer.append(FeatureRow(…))`.

    Raises UsageError, when it is entered, where a store of another precision is.
    """
    return StoreWriter(path, dtype)


def scan(folder: Path, about: StoreInfo) -> Iterator[StoreEntry]:
    """Every whole record of the data file in order, by its headers alone.

    Records that the index covers must be complete, else IntegrityError. Records behind them, which a killed run may
    have left, are checked by their CRC, and the first incomplete one ends the iteration.
    """
    covered = Index(folder).end if (folder / INDEX).is_file() else 0
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


def _whole(data: mmap.mmap, header: Header, offset: int, about: StoreInfo, trusted: bool) -> bool:
    used = header.body_bytes(about.row_bytes)
    if header.length != padded(ALIGN + used) or offset + header.length > len(data):
        return False
    if trusted:
        return True
    with memoryview(data) as view, view[offset + ALIGN : offset + ALIGN + used] as body:
        return checksum(header, body) == header.crc


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file of ours; an incomplete last line, as a kill leaves it, is skipped."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            found.append(decode_json(line))
        except ValueError:
            continue
    return found
