"""`Session`: what the transfers of a run share, and how a URL becomes bytes in it.

An opener per scheme (`register_opener`) answers a `Request` with a `Reply` or raises a Failure.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Protocol

from lavis_ext.common.files import flush_folder
from lavis_ext.fetch.ledger import GROUP, Ledger
from lavis_ext.fetch.safety import REMOTE_SCHEMES, deny_reason, split_url, url_fault
from lavis_ext.fetch.transfer import Failure, Policy, Progress, Silent, Stopped, disk_error

log = logging.getLogger(__name__)

# Requests and replies


@dataclass(frozen=True)
class Validators:
    """What distinguishes versions of an object: `ETag` and `Last-Modified` as the server wrote them."""

    etag: str | None = None
    last_modified: str | None = None

    @property
    def strong(self) -> str | None:
        """The value for `If-Range`: a strong ETag, else the date, else None (RFC 9110 §13.1.5)."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified

    def disagrees(self, other: Validators) -> bool:
        """Whether both sides name a version, and not the same."""
        if self.etag and other.etag:
            return self.etag.removeprefix("W/") != other.etag.removeprefix("W/")
        return bool(self.last_modified and other.last_modified and self.last_modified != other.last_modified)


@dataclass(frozen=True)
class Request:
    """Bytes `[start, stop)` of an object (`stop` None: to the end), of the version `condition` (`If-Range`) if any."""

    url: str
    start: int = 0
    stop: int | None = None
    condition: str | None = None
    trusted: bool = False

    @property
    def whole(self) -> bool:
        """Whether the whole object is asked for."""
        return self.start == 0 and self.stop is None


class Body(Protocol):
    """The bytes of a reply. One with `readinto(buffer) -> int` too is read into the same buffer again and again."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes as soon as some are there, b"" at the end; raises Failure."""

    def close(self) -> None:
        """Give the connection back, or drop it if bytes are left."""

    def abort(self) -> None:
        """Wake a `read` that blocks in another thread."""


@dataclass(eq=False)
class Reply:
    """An answer: bytes from `start` of an object of `total` bytes (None: unknown).

    `partial` says that it is a 206, not a 200; `ended` whether a complete body can be distinguished from a cut one;
    `ranges` whether the server takes ranges; `content_type` and `encoding` are the headers, "" where missing.
    """

    start: int
    total: int | None
    body: Body
    validators: Validators = Validators()
    partial: bool = False
    ranges: bool = False
    ended: bool = True
    content_type: str = ""
    encoding: str = ""
    following: str = ""
    """The next page of a listing (`Link: <…>; rel="next"`), "" where none is named."""


class Opener(Protocol):
    """Answers requests of one scheme."""

    def open(self, request: Request) -> Reply:
        """The bytes asked for (or the whole object from 0); raises Failure, Unsatisfiable."""


# Openers by scheme

OpenerFactory = Callable[["Session"], Opener]
_FACTORIES: dict[str, OpenerFactory] = {}
_MODULES = {
    "http": "lavis_ext.fetch.http",
    "https": "lavis_ext.fetch.http",
    "file": "lavis_ext.fetch.backends",
    "hf": "lavis_ext.fetch.backends",
    "gdrive": "lavis_ext.fetch.backends",
    "azure": "lavis_ext.fetch.azure",
    "s3": "lavis_ext.fetch.objects",
    "gs": "lavis_ext.fetch.objects",
    "az": "lavis_ext.fetch.objects",
}
"""Modules of the openers that come with the package, imported on first use."""


def register_opener(*schemes: str) -> Callable[[OpenerFactory], OpenerFactory]:
    """Decorator: this factory (session → opener) serves these URL schemes."""

    def register(factory: OpenerFactory) -> OpenerFactory:
        for scheme in schemes:
            if scheme in _FACTORIES:
                raise ValueError(f"scheme {scheme!r} has an opener already: {_FACTORIES[scheme]!r}")
            _FACTORIES[scheme] = factory
        return factory

    return register


def scheme_of(url: str) -> str:
    """The scheme of a URL, `file` for a plain path."""
    return split_url(url).scheme.lower() or "file"


def make_opener(scheme: str, session: Session) -> Opener:
    """The opener of a scheme; raises Failure (unsafe) for a scheme that has none."""
    if scheme in _MODULES:
        import_module(_MODULES[scheme])
    if scheme not in _FACTORIES:
        raise Failure("unsafe", f"scheme {scheme!r} is refused (known: {', '.join(sorted({*_FACTORIES, *_MODULES}))})")
    return _FACTORIES[scheme](session)


# The session


class _FolderFlushes:
    """Flushes of one folder, numbered: one runs at a time and serves all callers that asked before it began."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.asked = 0
        self.done = 0
        self.running = False


class Flusher:
    """`flush` returns when the folder's entries, as they were at the call, are on the disk.

    Threads that finish files in one folder at the same time share one flush of it, which is measurable where there are
    many small files (benchmarks/fetch.md). Where there are very many, `named` flushes once for `group` files, and
    `finish` for the last ones.
    """

    def __init__(self, group: int = 1) -> None:
        self._group = group
        self._lock = threading.Lock()
        self._folders: dict[Path, _FolderFlushes] = {}
        self._waiting: dict[Path, int] = {}

    def named(self, folder: Path) -> None:
        """A file has got its name in a folder: flush it, if a group of them has; raises OSError."""
        with self._lock:
            waiting = self._waiting.pop(folder, 0) + 1
            if waiting < self._group:
                self._waiting[folder] = waiting
                return
        self.flush(folder)

    def finish(self) -> None:
        """Flush the folders that wait for a group, the others too where one fails; raises OSError."""
        errors: list[OSError] = []
        while self._waiting:
            try:
                self.flush(self._waiting.popitem()[0])
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def flush(self, folder: Path) -> None:
        """Flush a folder; raises OSError."""
        with self._lock:
            flushes = self._folders.setdefault(folder, _FolderFlushes())
        with flushes.changed:
            flushes.asked += 1
            mine = flushes.asked
            while flushes.done < mine and flushes.running:
                flushes.changed.wait()
            if flushes.done >= mine:
                return
            flushes.running, serves = True, flushes.asked
        try:
            flush_folder(folder)
        except OSError:
            serves = 0  # the next caller in line flushes again, and gets its own error
            raise
        finally:
            with flushes.changed:
                flushes.running, flushes.done = False, max(flushes.done, serves)
                flushes.changed.notify_all()


class Session:
    """One run of the engine: policy, progress, openers with their connections, per-host limits, and the stop event.

    A context manager that closes its connections. Where `many` files are fetched, their folder is flushed and their
    ledger written for `GROUP` of them at a time, and at the end: what a process that is killed had not recorded yet is
    hashed once more.
    """

    def __init__(self, policy: Policy | None = None, progress: Progress | None = None, many: bool = False) -> None:
        self.policy = policy or Policy()
        self.progress: Progress = progress or Silent()
        self.stop = threading.Event()
        self.many = many
        self._group = GROUP if many else 1
        self.flusher = Flusher(self._group) if self.policy.fsync else None
        self._lock = threading.Lock()
        self._openers: dict[str, Opener] = {}
        self._hosts: dict[str, threading.BoundedSemaphore] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._active: set[Reply] = set()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._flush()
        except OSError as failed:
            if error is None:
                raise disk_error(failed, Path(failed.filename or ".")) from failed
        finally:
            self.close()

    def _flush(self) -> None:
        """Write what waits for a group; raises OSError where a folder cannot be flushed."""
        for ledger in self._ledgers.values():
            try:
                ledger.flush()
            except OSError as error:
                log.warning("%s: not recorded: %s", ledger.path, error.strerror)
        if self.flusher is not None:
            self.flusher.finish()

    def close(self) -> None:
        """Close every connection that openers keep."""
        for opener in self._openers.values():
            close = getattr(opener, "close", None)
            if close is not None:
                close()

    def halt(self) -> None:
        """Stop: no new request is sent, and threads that wait for bytes wake up; partial files stay valid."""
        self.stop.set()
        with self._lock:
            active = list(self._active)
        for reply in active:
            reply.body.abort()

    def pause(self, seconds: float) -> None:
        """Sleep, unless the run stops: then raises Stopped."""
        if self.stop.wait(seconds):
            raise Stopped

    @contextmanager
    def open(self, request: Request) -> Iterator[Reply]:
        """A reply, held to the per-host limit until it is closed; raises Failure, Unsatisfiable, Stopped."""
        scheme = scheme_of(request.url)
        if self.policy.offline and scheme != "file":
            raise Failure("final", "offline")
        fault = url_fault(request.url) if scheme in REMOTE_SCHEMES else None
        if fault:
            raise Failure("final", fault)
        reason = deny_reason(request.url, self.policy.denied_hosts)
        if reason:
            raise Failure("unsafe", reason)
        with self._host_limit(request.url):
            if self.stop.is_set():
                raise Stopped
            try:
                reply = self._opener(scheme).open(request)
            except ValueError as error:  # of a library, for a URL or an answer that it cannot parse
                raise Failure("final", f"{type(error).__name__}: not a URL, or not an answer") from error
            with self._lock:
                self._active.add(reply)
            try:
                yield reply
            finally:
                with self._lock:
                    self._active.discard(reply)
                reply.body.close()

    def ledger_for(self, path: Path) -> Ledger:
        """The ledger that records this file: the policy's, else the one of the file's folder."""
        folder = "" if self.policy.ledger else os.path.dirname(path)  # noqa: PTH120 - as text, for each of many files
        with self._lock:
            if folder not in self._ledgers:
                where = self.policy.ledger or path.parent / ".lavis_ext" / "ledger.jsonl"
                self._ledgers[folder] = Ledger(where, self._group)
            return self._ledgers[folder]

    def _opener(self, scheme: str) -> Opener:
        with self._lock:
            if scheme not in self._openers:
                self._openers[scheme] = make_opener(scheme, self)
            return self._openers[scheme]

    def _host_limit(self, url: str) -> threading.BoundedSemaphore:
        host = split_url(url).netloc.rpartition("@")[2]
        with self._lock:
            if host not in self._hosts:
                self._hosts[host] = threading.BoundedSemaphore(self.policy.per_host)
            return self._hosts[host]
