"""Digests, and the ledger of verified files, which are so hashed once: one JSON line a file, the last one counts."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lavis_ext.common.files import decode_json
from lavis_ext.fetch.transfer import Failure, Figures

log = logging.getLogger(__name__)
NAMELESS = -1
"""In place of a ctime: the file had not got its name yet."""
GROUP = 64
"""Files whose lines are written together, where many are fetched: those of a killed process are hashed once more."""
ALONE = 1 << 20
"""Bytes from which a file's line does not wait for others, since it takes long to hash."""


@dataclass(frozen=True)
class LedgerEntry:
    """A verified file: bytes, mtime in ns, inode, digests."""

    size: int
    mtime_ns: int
    inode: int
    sha256: str
    md5: str | None = None
    verified: bool = True
    equivalence: str = "byte_exact"
    fetched: bool = False
    """Whether the engine fetched it; else it was there before, and belongs to the user."""
    ctime_ns: int = 0
    """When the inode was last touched, which nobody can set, as they can the mtime; or NAMELESS; 0 in older ledgers."""
    leaving: bool = False
    """Whether it goes as soon as what came out of it is recorded."""

    def unchanged(self, stat: os.stat_result) -> bool:
        """Whether the file is still the one that was verified: by size, mtime, ctime and inode.

        A file that was written or copied into its place has another ctime, whatever else it shares. So has one that was
        linked or whose mode changed, which is hashed once more.
        """
        same = (self.size, self.mtime_ns, self.inode) == (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        return same and self.ctime_ns in (0, stat.st_ctime_ns)

    @property
    def is_ours(self) -> bool:
        """Whether it is proven that the engine fetched this very file, so that it may be removed."""
        return self.fetched and self.ctime_ns > 0

    def passes_on(self, later: LedgerEntry) -> bool:
        """Whether a file that is recorded again is still the one that the engine fetched, or was about to name."""
        same = (self.size, self.mtime_ns, self.inode) == (later.size, later.mtime_ns, later.inode)
        same = same and self.sha256 == later.sha256
        return same and self.fetched and self.ctime_ns in (NAMELESS, later.ctime_ns)

    def proves(self, figures: Figures) -> bool:
        """Whether the recorded digests are the declared ones: sha256 where it is declared, else md5."""
        if figures.sha256 and figures.sha256 != self.sha256:
            return False
        return not figures.md5 or figures.md5 == self.md5 or bool(figures.sha256)


class Ledger:
    """A JSON-lines file beside the data; it may be deleted, files are then hashed once more.

    Lines are appended in one write, so several processes may share it; a torn or foreign line is skipped. With a
    `group` larger than 1 the lines of so many small files are written together, the last ones by `flush`.
    """

    def __init__(self, path: Path, group: int = 1) -> None:
        self.path = path
        self._group = group
        self._waiting: list[bytes] = []
        self._base = path.parent.parent
        self._folders: dict[str, str] = {}
        """Absolute folder → what stands before the names of its files."""
        self._lock = threading.Lock()
        self._entries: dict[str, LedgerEntry] = {}
        self._read = 0
        self._inode = 0
        self._torn = False
        """Whether the last line has no end: the disk was full."""

    def find(self, path: Path, stat: os.stat_result) -> LedgerEntry | None:
        """The entry of this file, if the file is unchanged since."""
        entry = self.last(path)
        return entry if entry is not None and entry.unchanged(stat) else None

    def last(self, path: Path) -> LedgerEntry | None:
        """What was recorded last under this name, whatever lies there now."""
        with self._lock:
            self._refresh()
            return self._entries.get(self._key(path))

    def record(
        self,
        path: Path,
        sha256: str,
        md5: str | None = None,
        verified: bool = True,
        equivalence: str = "byte_exact",
        stat: os.stat_result | None = None,
        fetched: bool = False,
    ) -> None:
        """Note that `path`, as it is now or was (`stat`), has these digests; raises OSError."""
        stat = stat or path.stat()
        version = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        entry = LedgerEntry(*version, sha256, md5, verified, equivalence, fetched, stat.st_ctime_ns)
        with self._lock:
            if not fetched:
                self._refresh()
            before = self._entries.get(self._key(path))
            if before is not None and before.passes_on(entry):
                entry = replace(entry, fetched=True)
            self._add(path, entry)
            announced = before is not None and before.ctime_ns == NAMELESS  # whoever unpacks it looks at once
            if len(self._waiting) >= self._group or entry.size >= ALONE or announced:
                self._write()

    def announce(self, path: Path, sha256: str, stat: os.stat_result) -> None:
        """Note that a fetched file (`stat`) is about to get its name, which changes its ctime; raises OSError.

        A process that is killed before it calls `record` leaves a file that is hashed again, and known to be ours.
        """
        version = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        with self._lock:
            self._refresh()
            self._add(path, LedgerEntry(*version, sha256, fetched=True, ctime_ns=NAMELESS))
            self._write()

    def dismiss(self, path: Path, leaving: bool = True) -> bool:
        """Note that a file is about to be removed, or after all is not; False for one that the engine did not fetch.

        A process that is killed before it removes it leaves the next one to do so. Raises OSError.
        """
        try:
            entry = self.find(path, path.stat())
        except FileNotFoundError:
            return False
        if entry is None or not entry.is_ours:
            return False
        if entry.leaving != leaving:
            with self._lock:
                self._add(path, replace(entry, leaving=leaving))
                self._write()
        return True

    def flush(self) -> None:
        """Write the lines that wait for others; raises OSError."""
        with self._lock:
            self._write()

    def _add(self, path: Path, entry: LedgerEntry) -> None:
        name = self._key(path)
        self._entries[name] = entry
        fields = {"name": name, **vars(entry)}
        if not entry.leaving:  # earlier versions skip a line with a key that they do not know
            del fields["leaving"]
        line = json.dumps(fields, ensure_ascii=False) + "\n"
        self._waiting.append(line.encode("utf-8", "surrogateescape"))

    def _write(self) -> None:
        data, self._waiting = b"".join(self._waiting), []
        if not data:
            return
        data = b"\n" * self._torn + data
        try:
            file = self.path.open("ab", buffering=0)
        except FileNotFoundError:  # its folder: not made yet, or removed with what it told of
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("ab", buffering=0)
        with file:
            self._torn = file.write(data) < len(data)
            if not self._torn and file.tell() == self._read + len(data):  # nobody else has written: nothing to read
                self._read = file.tell()
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def _key(self, path: Path) -> str:
        head, mark, name = str(path).rpartition(os.sep)
        folder = head + mark
        if folder in self._folders and name != "..":
            return self._folders[folder] + name
        absolute, base = os.path.abspath(path), os.path.abspath(self._base)  # noqa: PTH100 - keeps symbolic links
        key = absolute[len(base) + 1 :] if absolute.startswith(base + os.sep) else absolute
        if self._base.is_absolute() and path.is_absolute() and name != "..":
            self._folders[folder] = key.removesuffix(name)
        return key

    def _refresh(self) -> None:
        """Read the lines that were appended since the last look."""
        try:
            found = self.path.stat()
        except OSError:
            return
        size = found.st_size
        if size < self._read or found.st_ino != self._inode:  # another file: read from its beginning
            self._read, self._inode = 0, found.st_ino
        if size == self._read:
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._read += whole
        self._torn = whole < len(data)
        for line in filter(None, data[:whole].splitlines()):
            try:
                fields = decode_json(line)
                name = fields.pop("name")
                self._entries[name] = LedgerEntry(**fields)
            except (ValueError, TypeError, KeyError, AttributeError):
                log.warning("%s: a line that cannot be read is skipped", self.path)


# Digests

BLOCK = 1 << 20
TICK = 1 << 26


def hash_open(
    descriptor: int, size: int, figures: Figures, tick: Callable[[], None] | None = None
) -> tuple[str, str | None]:
    """(sha256, md5 or None where none is declared) of the first `size` bytes of an open file, read from its beginning.

    What is hashed is read back, not what was in memory when it was written. `tick` is called after each 64 MiB. Raises
    Failure for a file that is shorter, OSError.
    """
    sha256 = hashlib.sha256()
    # MD5 is what some sources publish; it guards against damage, not against an attacker
    md5 = hashlib.md5(usedforsecurity=False) if figures.md5 else None
    at, block = 0, bytearray(min(BLOCK, size) or 1)
    view = memoryview(block)
    while at < size:
        count = os.preadv(descriptor, [view[: size - at]], at)
        if not count:
            raise Failure("integrity", f"the file ends at byte {at} of {size}")
        sha256.update(view[:count])
        if md5 is not None:
            md5.update(view[:count])
        at += count
        if tick is not None and at % TICK < count:
            tick()
    return sha256.hexdigest(), md5.hexdigest() if md5 else None


def hash_file(path: Path, figures: Figures) -> tuple[str, str | None]:
    """(sha256, md5 or None) of a file on disk; raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hash_open(file.fileno(), os.fstat(file.fileno()).st_size, figures)


def mismatch(figures: Figures, size: int, sha256: str | None, md5: str | None) -> str | None:
    """What differs from the declared figures, `expected … got …`, or None; digests that are None are not compared."""
    if figures.size is not None and size != figures.size:
        return f"expected {figures.size} bytes, got {size}"
    if figures.sha256 and sha256 and sha256 != figures.sha256:
        return f"expected sha256 {figures.sha256}, got {sha256}"
    if figures.md5 and md5 and md5 != figures.md5:
        return f"expected md5 {figures.md5}, got {md5}"
    return None
