"""A cache of objects on a local disk, which the processes of a host share: bounded, oldest out, filled ahead of need.

An object lies at `<folder>/<digest of address and version>/<name>`, so that two versions never meet under one name, and
gets that name from the engine only when it is whole: what a killed process leaves is continued by the next. Beside it
`<digest>.json` says how many bytes it has or will have; its modification time is the last use. Bytes are reserved, and
the longest unused objects removed, by one process at a time. Each opening looks whether the file is still the one that
the engine's ledger has as fetched; where it is not it is hashed, and fetched again if its bytes are others.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from lavis_ext.common.errors import ConfigError, IntegrityError, OwnedError
from lavis_ext.common.files import disk_errors, read_object, write_atomic
from lavis_ext.common.wording import human
from lavis_ext.fetch.engine import fetch_in
from lavis_ext.fetch.ledger import Ledger, hash_file
from lavis_ext.fetch.lock import Ownership, is_abandoned
from lavis_ext.fetch.objects import Pinned
from lavis_ext.fetch.session import Session
from lavis_ext.fetch.transfer import Figures, Policy, Source, Transfer

log = logging.getLogger(__name__)
WAIT = 0.05
TOUCHED = 1.0
"""Seconds for which a use is not noted again."""
LOST = 5
"""How often an object may be removed by other processes between its arrival and its use."""


DIGEST = re.compile(r"[0-9a-f]{32}")
NOTE = re.compile(r"(\.)?([0-9a-f]{32})\.json(?(1)\..+\.tmp)")
"""A note, or what a process that was killed had written of one."""
Version = tuple[int, int, int, int]


class _Entry(NamedTuple):
    used: int
    size: int
    digest: str


@dataclass(eq=False)
class ObjectCache:
    """At most `limit` bytes below `folder`, over all processes that share it; `ahead` objects come at a time unasked.

    Picklable, and safe in threads and after a fork.
    """

    folder: Path
    limit: int
    ahead: int = 2
    policy: Policy = field(default_factory=Policy)
    fetched: int = 0
    """Objects that this process fetched."""

    def __post_init__(self) -> None:
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        names = ("folder", "limit", "ahead", "policy", "fetched")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._jobs: dict[str, Future[Path]] = {}
        self._reserved: set[str] = set()
        """Objects that this process fetches now, for which there is room."""
        self._proven: dict[str, Version] = {}
        """How the files lay that are known to be what was fetched."""
        self._touched: dict[str, float] = {}
        self._wanted: deque[Pinned] = deque()
        self._needed: frozenset[str] = frozenset()
        """Objects that were asked for last, which go after all others."""
        self._workers = 0
        self._session: Session | None = None
        self._pid = os.getpid()

    def path(self, one: Pinned) -> Path:
        """Where an object lies, once it is there."""
        return self.folder / digest_of(one) / one.name

    def get(self, one: Pinned) -> Path:
        """The object's file, fetched where it is not there; raises as `fetch` does, and ConfigError for one too large.

        Raises IntegrityError where the object is no longer the version that was pinned.
        """
        path = self.path(one)
        if self._is_there(one, path):
            return path
        job, own = self._job(one)
        if own:
            self._work(one, job)
        return job.result()

    def open(self, one: Pinned) -> int:
        """A descriptor of the object's file, which the caller closes; raises as `get`.

        Raises OwnedError where others remove it again and again.
        """
        for _ in range(LOST):
            path = self.get(one)
            try:
                descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except FileNotFoundError:
                continue
            if self._proven.get(digest_of(one)) == _version(os.fstat(descriptor)):
                return descriptor
            os.close(descriptor)
        what = f"other processes remove what this one reads: {human(self.limit)} are too few for all"
        raise OwnedError(str(self.folder), what, "give `cache_gb` a larger value")

    def prefetch(self, ones: Iterable[Pinned]) -> None:
        """Fetch these next, in this order, `ahead` at a time; what cannot be fetched is told by `get`."""
        with self._lock:
            self._own_process()
            self._wanted = deque(ones)
            self._needed = frozenset(map(digest_of, self._wanted))
            new = min(self.ahead - self._workers, len(self._wanted))
            self._workers += max(0, new)
        for _ in range(new):  # daemons: a process that ends does not wait for what it does not need
            threading.Thread(target=self._drain, name="shard-ahead", daemon=True).start()

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._workers -= 1
                    return
                one = self._wanted.popleft()
            if not self._is_there(one, self.path(one)):
                job, own = self._job(one)
                if own:
                    self._work(one, job)

    def _job(self, one: Pinned) -> tuple[Future[Path], bool]:
        """The fetch of an object that runs in this process, or a new one that the caller has to run."""
        with self._lock:
            self._own_process()
            job = self._jobs.get(digest_of(one))
            if job is not None and not job.done():
                return job, False
            if job is not None and job.exception() is not None:
                del self._jobs[digest_of(one)]  # told once; whoever asks again tries again
                return job, False
            job = self._jobs[digest_of(one)] = Future()
            return job, True

    def _own_process(self) -> None:
        if self._pid != os.getpid():
            self._forget()

    def _work(self, one: Pinned, job: Future[Path]) -> None:
        try:
            path = self._fetch(one)
        except BaseException as error:
            self._reserved.discard(digest_of(one))
            job.set_exception(error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
        else:
            self._reserved.discard(digest_of(one))
            with self._lock:
                self._jobs.pop(digest_of(one), None)
            job.set_result(path)

    def _is_there(self, one: Pinned, path: Path) -> bool:
        """Whether its file is the one that was fetched, as its size, mtime, ctime and inode say; notes the use."""
        try:
            found = path.stat()
        except OSError:
            return False
        digest, now = digest_of(one), time.monotonic()
        if self._proven.get(digest) != _version(found):
            entry = self._ledger(path).find(path, found)
            if entry is None or not entry.is_ours or entry.size != one.size or one.sha256 not in (None, entry.sha256):
                return False
            self._proven[digest] = _version(found)
        if now - self._touched.get(digest, -TOUCHED) >= TOUCHED:
            self._touched[digest] = now
            with suppress(OSError):
                os.utime(self._note(digest))
        return True

    def _ledger(self, path: Path) -> Ledger:
        return Ledger(self.policy.ledger or path.parent / ".lavis_ext" / "ledger.jsonl")

    def _keep(self, one: Pinned, path: Path) -> bool:
        """Whether a file that was touched since it came, or of which nothing is known, has the object's bytes.

        Else a file is removed: a cache gives what it fetched, and never another's bytes of the same size.
        """
        try:
            before = path.stat()
        except OSError:
            return False
        ledger = self._ledger(path)
        entry = ledger.last(path)
        expected = one.sha256 or (entry.sha256 if entry is not None and entry.fetched else None)
        same = path.is_file() and before.st_size == one.size and expected is not None
        if same and hash_file(path, Figures())[0] == expected:
            with suppress(OSError):  # it is hashed again next time
                ledger.record(path, str(expected), stat=before, fetched=True)
            self._proven[digest_of(one)] = _version(before)
            return True
        log.warning("%s: not what was fetched: it comes again", path)
        if path.is_symlink() or not path.is_dir():  # a folder there, which is not ours, the engine sets aside
            path.unlink(missing_ok=True)
        return False

    def _note(self, digest: str) -> Path:
        return self.folder / f"{digest}.json"

    def _fetch(self, one: Pinned) -> Path:
        path = self.path(one)
        with self._lock:
            self._session = self._session or Session(self.policy)
            session = self._session
        with disk_errors(self.folder, "name another `cache_dir`"):
            self.folder.mkdir(parents=True, exist_ok=True)
            for _ in range(LOST):
                self._reserve(one)
                if not self._is_fetched_elsewhere(digest_of(one)) and self._keep(one, path):
                    return path
                result = fetch_in(
                    session, Transfer(path, (Source(one.url, trusted=True),), one.size, one.sha256, label=one.name)
                )
                if not self._note(digest_of(one)).exists():
                    continue  # removed by a process that had waited for its turn: its bytes are not counted
                break
        came = result.validator
        if came and one.version and not one.sha256 and not one.fixed and _plain(came) != _plain(one.version):
            self._remove(digest_of(one))
            raise IntegrityError(
                one.shown,
                f"the object changed while it was in use: version {one.version}, and now {came}",
                "start a new run: samples of two versions are never mixed",
            )
        if not result.reused:
            self.fetched += 1
        with suppress(OSError):
            self._proven[digest_of(one)] = _version(path.stat())
            os.utime(self._note(digest_of(one)))  # it came to be used: later than what was read meanwhile
        return path

    # Room

    def _reserve(self, one: Pinned) -> None:
        """Note the bytes of an object that is to come, and remove as much as they need.

        Raises ConfigError for one that the cache cannot hold, OwnedError where others fill it for too long.
        """
        if one.size > self.limit:
            what = f"{one.name} has {human(one.size)}, the cache at most {human(self.limit)}"
            raise ConfigError(str(self.folder), what, "give `cache_gb` a larger value")
        owner, begun = self.folder / "cache.owner", time.monotonic()
        while True:
            with Ownership(owner, owner, replace(self.policy, owner_stall=self.policy.owner_wait)):
                if self._make_room(one):
                    note = self._note(digest_of(one))
                    write_atomic(note, json.dumps({"size": one.size, "name": one.name}) + "\n")
                    self._reserved.add(digest_of(one))
                    return
            if time.monotonic() - begun > self.policy.owner_wait:
                what = f"{human(self.limit)} are taken by what other processes fetch"
                raise OwnedError(str(self.folder), what, "give `cache_gb` a larger value")
            time.sleep(WAIT)

    def _make_room(self, one: Pinned) -> bool:
        """Remove the longest unused until it fits; False where all that is left is being fetched."""
        for path in self.folder.glob(".*.json.*.tmp"):
            if NOTE.fullmatch(path.name):  # of a process that was killed: notes are written by one at a time
                path.unlink(missing_ok=True)
        own = digest_of(one)
        entries = [entry for entry in self.entries() if entry.digest != own]
        free = self.limit - one.size - sum(entry.size for entry in entries)
        for entry in sorted(entries, key=lambda entry: (entry.digest in self._needed, entry)):
            if free >= 0:
                break
            if not self._is_coming(entry.digest):
                self._remove(entry.digest)
                free += entry.size
        return free >= 0

    def entries(self) -> list[_Entry]:
        """Last use, bytes and digest of each object that is there or to come.

        What a kill has left without a note counts by its bytes. Nothing of whoever else uses this folder is counted.
        """
        noted: dict[str, tuple[int, int]] = {}
        lying: dict[str, int] = {}
        there: list[os.DirEntry[str]] = []
        with suppress(FileNotFoundError):
            there = list(os.scandir(self.folder))
        for path in map(Path, there):
            note = NOTE.fullmatch(path.name)
            with suppress(OSError):
                if note and not note[1]:
                    size = read_object(path).get("size")
                    noted[note[2]] = path.stat().st_mtime_ns, size if type(size) is int and size > 0 else 0
                elif DIGEST.fullmatch(path.name):
                    files = [one.stat() for one in os.scandir(path) if one.is_file()]
                    lying[path.name] = sum({file.st_ino: file.st_size for file in files}.values())
        digests = {*noted, *lying}
        found = {digest: (*noted.get(digest, (0, 0)), lying.get(digest, 0)) for digest in digests}
        return [_Entry(used, max(size, lies), digest) for digest, (used, size, lies) in found.items()]

    def _is_coming(self, digest: str) -> bool:
        """Whether a living process fetches it; this one also between the reservation and the first byte.

        One that this process still waits to have room for is not coming: what was noted of it earlier would stand in
        the way of another that waits.
        """
        return digest in self._reserved or self._is_fetched_elsewhere(digest)

    def _is_fetched_elsewhere(self, digest: str) -> bool:
        try:
            paths = list((self.folder / digest).iterdir())
        except OSError:
            return False
        return any(not is_abandoned(path) for path in paths if path.name.endswith(".part.owner"))

    def _remove(self, digest: str) -> None:
        """Remove an object of this cache, and what there is of one that did not come whole.

        Who reads it at the moment has it open, and reads it to the end.
        """
        shutil.rmtree(self.folder / digest, ignore_errors=True)
        self._note(digest).unlink(missing_ok=True)


@dataclass(frozen=True)
class CachedObject:
    """An object that is read through a cache, as a file is."""

    pinned: Pinned
    cache: ObjectCache

    @property
    def shown(self) -> str:
        """Its address, for messages."""
        return self.pinned.shown

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.pinned.size

    @property
    def path(self) -> Path:
        """Where its file lies, once it is there."""
        return self.cache.path(self.pinned)

    def open(self) -> int:
        """A descriptor of its file, which is fetched where it is not there; raises as `fetch` does."""
        return self.cache.open(self.pinned)

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`. Each read opens the file: what the cache removes then gives its bytes back."""
        descriptor = self.open()
        try:
            return os.pread(descriptor, max(0, min(size, self.size - offset)), offset)
        finally:
            os.close(descriptor)


@lru_cache(maxsize=1 << 14)
def digest_of(one: Pinned) -> str:
    """What names a version of an object in a cache; no secret can be read out of it."""
    return sha256(f"{one.shown}\n{one.size}\n{one.version}".encode()).hexdigest()[:32]


def _plain(version: str) -> str:
    return version.removeprefix("W/").strip('"')


def _version(found: os.stat_result) -> Version:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
