"""Remote objects without a local file: `RemoteFile` is seekable and reads by ranges, `fetch_bytes` reads all of it."""

from __future__ import annotations

import io
import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from lavis_ext.common.errors import IntegrityError, NetworkError
from lavis_ext.fetch.ranges import Range
from lavis_ext.fetch.safety import redact_url
from lavis_ext.fetch.session import Reply, Request, Session, Validators
from lavis_ext.fetch.transfer import (
    PROGRESS_THAT_COUNTS,
    Failure,
    Policy,
    Source,
    SpeedGate,
    Unsatisfiable,
    backoff,
    to_error,
)

READ_AHEAD = 1 << 16
NEAR = 1 << 16
CHUNK = 1 << 18


class RemoteFile(io.RawIOBase):
    """Seekable, read-only; give it to `zipfile.ZipFile` or read many ranges at once.

    Sources must be byte_exact; the next one is taken where one fails, if its size agrees. An object that is replaced
    while the file is open raises IntegrityError: bytes of two versions never mix. `bytes_moved` counts what came,
    read-ahead included; opening reads the first `ahead` bytes, at least one. Raises NetworkError, AccessError,
    UnsafeError as `fetch` does.
    """

    def __init__(
        self,
        sources: Source | str | Sequence[Source],
        policy: Policy | None = None,
        size: int | None = None,
        session: Session | None = None,
        ahead: int = READ_AHEAD,
    ) -> None:
        super().__init__()
        given = [sources] if isinstance(sources, (Source, str)) else list(sources)
        found = [Source(source) if isinstance(source, str) else source for source in given]
        self._sources = [source for source in found if source.exact or len(found) == 1]
        self._owns_session = session is None
        self._session = session or Session(policy)
        self._policy = self._session.policy
        self._lock = threading.Lock()
        self._current = 0
        self._validators: dict[int, Validators] = {}
        self._position = 0
        self._cache: tuple[int, bytes] = (0, b"")
        self.bytes_moved = 0
        self._size = size
        self._cache = (0, self._get(0, ahead if size is None else min(ahead, size)))

    @property
    def size(self) -> int:
        """Bytes of the whole object."""
        return self._size or 0

    @property
    def source(self) -> str:
        """The URL in use, without secrets."""
        return redact_url(self._sources[self._current].url)

    @property
    def validator(self) -> str:
        """The ETag or date of the version that is open at `source`; "" where the server sent neither."""
        known = self._validators.get(self._current, Validators())
        return known.etag or known.last_modified or ""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; nothing is fetched."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: object) -> int:
        """Fill a buffer from the position on; fewer bytes only at the end of the file."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        stop = min(self.size, self._position + len(view))
        if self._position >= stop:
            return 0
        data = self._cached(self._position, stop)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed and self._owns_session:
            self._session.close()
        super().close()

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def read_ranges(self, ranges: Iterable[Range], jobs: int | None = None) -> list[bytes]:
        """The bytes of each half-open range, in their order; near ranges share a request, `jobs` requests at a time."""
        wanted = list(ranges)
        for start, stop in wanted:
            if not 0 <= start <= stop <= self.size:
                raise ValueError(f"[{start}, {stop}) is not within {self.size} bytes")
        spans = merge_near(wanted, NEAR)
        with ThreadPoolExecutor(max(1, jobs or self._policy.segments)) as pool:
            blocks = list(pool.map(lambda span: self._get(*span), spans))
        found, firsts = [], [first for first, _ in spans]
        for start, stop in wanted:
            n = bisect_right(firsts, start) - 1
            found.append(blocks[n][start - firsts[n] : stop - firsts[n]])
        return found

    def _cached(self, start: int, stop: int) -> bytes:
        at, data = self._cache
        if not at <= start <= stop <= at + len(data):
            wide = min(self.size, max(stop, start + READ_AHEAD))
            at, data = self._cache = (start, self._get(start, wide))
        return data[start - at : stop - at]

    def _get(self, start: int, stop: int) -> bytes:
        """Bytes `[start, stop)` (fewer only while the size is unknown), over all sources and attempts."""
        if start == stop:
            return b""
        failures: list[tuple[str, Failure]] = []
        while self._current < len(self._sources):
            current = self._current
            try:
                return self._attempts(current, start, stop)
            except Failure as failure:
                url = redact_url(self._sources[current].url)
                failures.append((url, failure))
                if failure.kind in ("replaced", "integrity"):
                    raise IntegrityError(url, failure.reason, "run again") from failure
                with self._lock:
                    self._current = max(self._current, current + 1)
        name = redact_url(self._sources[0].url) if self._sources else "remote file"
        raise to_error(name, failures)

    def _attempts(self, current: int, start: int, stop: int) -> bytes:
        data = bytearray()
        tried = 0
        while True:
            before = len(data)
            try:
                self._receive(current, start + len(data), stop, data)
                return bytes(data)
            except Failure as failure:
                tried = 1 if len(data) - before >= PROGRESS_THAT_COUNTS else tried + 1
                if failure.kind != "transient" or tried > self._policy.retries:
                    raise
                self._session.pause(backoff(tried - 1, self._policy, failure.retry_after))

    def _receive(self, current: int, start: int, stop: int, data: bytearray) -> None:
        source = self._sources[current]
        known = self._validators.get(current)
        trusted = source.trusted or bool(source.sha256 or source.md5)
        request = Request(source.url, start, stop, known.strong if known else None, trusted)
        try:
            with self._session.open(request) as reply:
                goal = min(stop, self._validate_reply(current, reply, start)) - start
                self._fill(reply, goal, data)
        except Unsatisfiable as answer:
            if self._size in (None, 0) and answer.total == 0:
                self._size = 0
                return
            raise Failure("replaced", f"the object has {answer.total} bytes now") from answer

    def _validate_reply(self, current: int, reply: Reply, start: int) -> int:
        """Check that the reply is a range of the version that is open; returns the object's size."""
        known = self._validators.get(current)
        if known is not None and (known.disagrees(reply.validators) or not reply.partial):
            raise Failure("replaced", "the object was replaced while it was open")
        if not reply.partial or reply.start != start:
            raise Failure("ranges", "the server does not answer ranges")
        if reply.total is None:
            raise Failure("final", "the server does not name the size")
        if self._size is not None and self._size != reply.total:
            raise Failure(
                "replaced" if known else "final", f"expected {self._size} bytes, the server has {reply.total}"
            )
        with self._lock:
            self._validators[current] = reply.validators
            self._size = reply.total
        return reply.total

    def _fill(self, reply: Reply, goal: int, data: bytearray) -> None:
        gate, before = SpeedGate(self._policy), len(data)
        while len(data) - before < goal:
            piece = reply.body.read(min(CHUNK, goal - (len(data) - before)))
            if not piece:
                raise Failure("transient", "the body ended early")
            data += piece
            gate.passed(len(piece))
            with self._lock:
                self.bytes_moved += len(piece)


def merge_near(ranges: Iterable[Range], near: int) -> list[Range]:
    """Sorted spans that cover all ranges; those at most `near` bytes apart become one."""
    spans: list[Range] = []
    for start, stop in sorted(ranges):
        if spans and start <= spans[-1][1] + near:
            spans[-1] = (spans[-1][0], max(spans[-1][1], stop))
        else:
            spans.append((start, stop))
    return spans


# Small documents (manifests, listings)

SMALL_CHUNK = 1 << 16


def fetch_bytes(source: Source, policy: Policy | None = None, limit: int = 1 << 20) -> bytes | None:
    """The whole body in memory, None where there is no such object (404).

    Raises NetworkError, AccessError, UnsafeError, and IntegrityError for more than `limit` bytes.
    """
    with Session(policy) as session:
        page = fetch_page(session, source, limit)
    return None if page is None else page[0]


def fetch_page(session: Session, source: Source, limit: int) -> tuple[bytes, str] | None:
    """`fetch_bytes` inside a session, with the address of the next page where the answer names one."""
    for attempt in range(session.policy.retries + 1):
        try:
            return _read(session, source, limit)
        except Failure as failure:
            if failure.kind == "absent":
                return None
            if failure.kind != "transient" or attempt == session.policy.retries:
                raise to_error(redact_url(source.url), [(redact_url(source.url), failure)]) from failure
            session.pause(backoff(attempt, session.policy, failure.retry_after))
    raise NetworkError(redact_url(source.url), "not fetched", "run again")


def _read(session: Session, source: Source, limit: int) -> tuple[bytes, str]:
    data, gate = bytearray(), SpeedGate(session.policy)
    with session.open(Request(source.url, trusted=source.trusted)) as reply:
        while piece := reply.body.read(SMALL_CHUNK):
            data += piece
            gate.passed(len(piece))
            if len(data) > limit:
                raise Failure("integrity", f"more than {limit} bytes came")
    return bytes(data), reply.following
