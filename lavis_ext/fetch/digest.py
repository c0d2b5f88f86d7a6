"""Digests of a file that grows: hashed while it is written where bytes come in order, the rest read once at the end."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from lavis_ext.fetch.failures import Failure
from lavis_ext.fetch.model import Figures

BLOCK = 1 << 20


class Digest:
    """sha256 always, md5 where one is declared; `position` is how far from the beginning it has come."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Start over."""
        self._sha256 = hashlib.sha256()
        # MD5 is what some sources publish; it guards against damage, not against an attacker
        self._md5 = hashlib.md5(usedforsecurity=False) if self._figures.md5 else None
        self.position = 0

    def feed(self, offset: int, data: bytes) -> None:
        """Take bytes written at `offset`, if they are the next ones; others are read back by `finish`."""
        if offset != self.position:
            return
        with self._lock:
            if offset == self.position:
                self._update(data)

    def follow(self, fd: int, stop: int) -> None:
        """Read on in the file up to `stop`, unless another thread is at it: hashing while others fetch."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._read(fd, stop)
        finally:
            self._lock.release()

    def finish(self, fd: int, size: int) -> tuple[str, str | None]:
        """(sha256, md5 or None) of the first `size` bytes of the file, reading what was not fed."""
        with self._lock:
            self._read(fd, size)
            return self._sha256.hexdigest(), self._md5.hexdigest() if self._md5 else None

    def _read(self, fd: int, stop: int) -> None:
        while self.position < stop:
            data = os.pread(fd, min(BLOCK, stop - self.position), self.position)
            if not data:
                raise Failure("integrity", f"the file ends at byte {self.position} of {stop}")
            self._update(data)

    def _update(self, data: bytes) -> None:
        self._sha256.update(data)
        if self._md5 is not None:
            self._md5.update(data)
        self.position += len(data)


def hash_file(path: Path, figures: Figures) -> tuple[str, str | None]:
    """(sha256, md5 or None) of a file on disk; raises OSError where it cannot be read."""
    digest = Digest(figures)
    with path.open("rb") as file:
        return digest.finish(file.fileno(), os.fstat(file.fileno()).st_size)


def mismatch(figures: Figures, size: int, sha256: str | None, md5: str | None) -> str | None:
    """What differs from the declared figures, `expected … got …`, or None; digests that are None are not compared."""
    if figures.size is not None and size != figures.size:
        return f"expected {figures.size} bytes, got {size}"
    if figures.sha256 and sha256 and sha256 != figures.sha256:
        return f"expected sha256 {figures.sha256}, got {sha256}"
    if figures.md5 and md5 and md5 != figures.md5:
        return f"expected md5 {figures.md5}, got {md5}"
    return None
