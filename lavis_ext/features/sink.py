"""The end of a data file, written by a thread of its own, so that decoding does not wait for the disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

BATCH = 1 << 20
WAITING = 2
SYNC = 64 << 20
PIECES = 512
Piece = bytes | memoryview


class Sink:
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
