"""The digests of a large partial file, taken from the disk behind its front while the rest of it comes.

Hashing takes as long as receiving does from a near server; done behind it, both cost the time of one.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterable

from lavis_ext.fetch.transfer import Failure

BLOCK = 1 << 20
TICK = 1 << 26
"""Bytes of the second look after which `tick` is called."""
FLUSHED = 1 << 26
"""Bytes after which what came is flushed, so that the flush at the end has little left (benchmarks/fetch.md)."""
PATIENCE = 0.5
"""Seconds between two calls of `tick` while the rest is hashed."""


class ReadBack:
    """A thread that hashes what lies before `front`, where the bytes are there without a gap.

    What it hashes it has read from the file. `finish` hashes the rest, and reads what was hashed earlier once more, to
    compare it by CRC-32: somebody may have changed it meanwhile. Memory: one block, and a number for each.
    """

    def __init__(self, descriptor: int, md5: bool, flush: bool) -> None:
        self._descriptor = descriptor
        self._sha256 = hashlib.sha256()
        # MD5 is what some sources publish; it guards against damage, not against an attacker
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self._sums: list[int] = []
        """CRC-32 of each block as it was hashed."""
        self._changed = threading.Condition()
        self._front = self._wanted = 0
        self._size: int | None = None
        self._stopped = self._unreadable = False
        self._flush = flush
        self._flushing: threading.Thread | None = None
        self._flush_error: OSError | None = None
        self._thread = threading.Thread(target=self._hash, name="fetch-read-back", daemon=True)
        self._thread.start()

    def takes(self, md5: bool) -> bool:
        """Whether it takes the digests that are needed."""
        return self._md5 is not None or not md5

    def advance(self, front: int) -> None:
        """The bytes before `front` are there."""
        self._front = front  # before the look at what is wanted, which is written before a look at the front
        if front >= self._wanted:
            with self._changed:
                self._changed.notify()

    def finish(self, size: int, tick: Callable[[], None]) -> tuple[str, str | None] | None:
        """(sha256, md5 or None) of the file, all of whose `size` bytes are there; None where it cannot be read.

        `tick` is called now and then. Raises Failure where what was hashed has changed since, OSError of a flush.
        """
        hashed = len(self._sums)  # and one more may have been read
        with self._changed:
            self._size = size
            self._changed.notify()
        try:
            self._compare(range(hashed), size, tick)
            while self._thread.is_alive():
                self._thread.join(PATIENCE)
                tick()
            self._compare(range(hashed, min(hashed + 1, len(self._sums))), size, tick)
            if self._flushing is not None:
                self._flushing.join()
        finally:
            self.close()
        if self._flush_error is not None:  # the kernel tells a descriptor of it once
            raise self._flush_error
        return None if self._unreadable else (self._sha256.hexdigest(), self._md5.hexdigest() if self._md5 else None)

    def close(self) -> None:
        """Stop, before the descriptor is closed."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _compare(self, blocks: Iterable[int], size: int, tick: Callable[[], None]) -> None:
        for number in blocks:
            at = number * BLOCK
            if zlib.crc32(os.pread(self._descriptor, min(BLOCK, size - at), at)) != self._sums[number]:
                raise Failure("integrity", "another process changed the partial file while it was fetched")
            if at % TICK == 0:
                tick()

    def _hash(self) -> None:
        view, at = memoryview(bytearray(BLOCK)), 0
        try:
            while (stop := self._next(at)) > at:
                block = view[: stop - at]
                if not self._fill(block, at):
                    self._unreadable = True
                    return
                self._sha256.update(block)
                if self._md5 is not None:
                    self._md5.update(block)
                self._sums.append(zlib.crc32(block))
                at = stop
                if self._flush and at % FLUSHED == 0:
                    self._flush_behind()
        except OSError:
            self._unreadable = True

    def _next(self, at: int) -> int:
        """Where the block at `at` ends, once it is there; `at` itself at the end, or to stop."""
        with self._changed:
            self._wanted = at + BLOCK
            self._changed.wait_for(lambda: self._stopped or self._front >= at + BLOCK or self._size is not None)
            if self._stopped:
                return at
            return at + BLOCK if self._size is None else min(at + BLOCK, self._size)

    def _fill(self, block: memoryview, at: int) -> bool:
        while block:
            count = os.preadv(self._descriptor, [block], at)
            if not count:
                return False
            block, at = block[count:], at + count
        return True

    def _flush_behind(self) -> None:
        def work() -> None:
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                self._flush_error = error

        if self._flushing is None or not self._flushing.is_alive():
            self._flushing = threading.Thread(target=work, name="fetch-flush", daemon=True)
            self._flushing.start()
