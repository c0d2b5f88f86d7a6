"""One attempt at one source: missing ranges are requested, checked to be of the same object, and written."""

from __future__ import annotations

import threading
from collections import deque

from lavis_ext.fetch.part import Part
from lavis_ext.fetch.ranges import Range, cut
from lavis_ext.fetch.session import Body, Reply, Request, Session
from lavis_ext.fetch.transfer import Failure, Figures, Source, SpeedGate, Stopped, Unsatisfiable

CHUNK = 1 << 18
MAGIC: dict[str, tuple[bytes, ...]] = {
    ".zip": (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"),
    ".gz": (b"\x1f\x8b",),
    ".tgz": (b"\x1f\x8b",),
    ".jpg": (b"\xff\xd8",),
    ".jpeg": (b"\xff\xd8",),
    ".png": (b"\x89PNG",),
    ".parquet": (b"PAR1",),
}
"""First bytes by suffix, by which login and quota pages are found before the hash is computed."""
PAGES = (".html", ".htm", ".xhtml", ".svg", ".xml")


def describe(reply: Reply) -> str:
    """The size of a reply's object in words, with a hint where it looks like a page made for people."""
    hint = " (an HTML page: login, quota or error page)" if reply.content_type == "text/html" else ""
    return f"{reply.total}{hint}"


def refuse_foreign(reply: Reply | None, name: str, figures: Figures, data: bytes = b"") -> None:
    """Raise Failure where the headers or the first bytes cannot be of a file of this name.

    With a declared hash only HTML pages are refused early: the hash decides the rest.
    """
    lower = name.lower()
    if data and not lower.endswith(PAGES) and looks_like_html(data):
        quota = b"uota" in data  # "quota", "Quota"
        hint = ": the host's download quota is used up" if quota else " (login, quota or error page)"
        raise Failure("integrity", f"the server sent an HTML page instead of {name}{hint}")
    if figures.hashed:
        return
    if reply is not None and reply.encoding and not lower.endswith((".gz", ".tgz")):
        raise Failure("integrity", f"the server encodes the body ({reply.encoding}) although identity was asked for")
    suffix = lower[lower.rfind(".") :]
    expected = MAGIC.get(suffix, ())
    if data and expected and not data.startswith(tuple(magic[: len(data)] for magic in expected)):
        raise Failure("integrity", f"the first bytes are not those of a {suffix} file")


def looks_like_html(data: bytes) -> bool:
    """Whether bytes begin as an HTML page does."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype html", b"<html"))


def receive(body: Body, buffer: memoryview) -> memoryview:
    """What has arrived of a body, nothing at its end: in `buffer`, where the body can put it there."""
    readinto = getattr(body, "readinto", None)
    return buffer[: readinto(buffer)] if readinto is not None else memoryview(body.read(len(buffer)))


class Download:
    """An attempt at one source. `run` returns when the part is complete by size; `moved` counts bytes that came."""

    def __init__(self, session: Session, source: Source, figures: Figures, part: Part, label: str) -> None:
        self._session = session
        self._policy = session.policy
        self._source = source
        self._figures = figures
        self._part = part
        self._label = label
        self._condition: str | None = None
        self._lock = threading.Lock()
        self._halt = threading.Event()
        self.moved = 0

    def run(self) -> None:
        """Fetch what is missing; raises Failure, Stopped, OSError (of the disk)."""
        before = self._part.ranges.covered
        self._condition = self._part.resume_condition(self._source, self._figures)
        self._discarded(before - self._part.ranges.covered)
        while self._step():
            pass

    def reset(self) -> None:
        """Discard the part's bytes."""
        self._discarded(self._part.reset())

    def _discarded(self, count: int) -> None:
        if count:
            self._session.progress.advance(self._label, -count)

    def _step(self) -> bool:
        """Request the first gap, and write what comes; False when nothing is missing."""
        total = self._total()
        if total is None:
            return self._fetch(self._part.ranges.prefix, None)
        gaps = self._part.ranges.gaps(total)
        if not gaps:
            return False
        start, stop = gaps[0]
        if self._large(total) and (self._figures.hashed or self._condition):
            return self._fetch(start, min(stop, start + self._policy.segment_bytes))
        return self._fetch(start, None if stop == total else stop)

    def _fetch(self, start: int, stop: int | None) -> bool:
        """Ask for `[start, stop)`; True while more may be missing."""
        threads: list[threading.Thread] = []
        blocks: deque[Range] = deque()
        errors: list[BaseException] = []
        try:
            with self._session.open(self._request(start, stop)) as reply:
                start = self._validate_reply(reply, start)
                stop, blocks = self._plan(reply, start, stop)
                threads = self._spread(blocks, errors)
                self._receive(reply, start, stop)
            self._work(blocks, errors)
        except Unsatisfiable as answer:
            return self._unsatisfiable(answer.total)
        except BaseException as error:
            self._halt.set()
            if not isinstance(error, Exception):
                self._session.halt()  # an interrupt does not wait for bytes
            if isinstance(error, Stopped) and errors:
                raise errors[0] from error  # by which another connection stopped this one
            raise
        finally:
            for thread in threads:  # after an interrupt only briefly: they wake up by themselves
                thread.join(timeout=2.0 if self._session.stop.is_set() else None)
        if errors:
            raise errors[0]
        return self._total() is not None

    def _request(self, start: int, stop: int | None) -> Request:
        trusted = self._source.trusted or self._figures.hashed
        return Request(self._source.url, start, stop, self._condition, trusted)

    def _total(self) -> int | None:
        return self._part.total if self._figures.size is None else self._figures.size

    def _large(self, total: int) -> bool:
        return self._policy.segments > 1 and total >= self._policy.parallel_from

    def _validate_reply(self, reply: Reply, start: int) -> int:
        """Check that a reply is of the object whose bytes are there; returns the offset of its first byte."""
        size = self._figures.size
        if None not in (size, reply.total) and reply.total != size:
            raise Failure("integrity", f"expected {size} bytes, the server has {describe(reply)}")
        if reply.start != start and reply.partial:
            raise Failure("replaced", f"asked for bytes from {start}, got them from {reply.start}")
        if reply.start != start:
            self.reset()
        elif start and self._other_version(reply):
            raise Failure("replaced", "the object was replaced while it was fetched")
        refuse_foreign(reply, self._part.target.name, self._figures)
        self._part.record_validators(self._source, reply.validators, reply.total)
        self._condition = reply.validators.strong
        if (self._total() or 0) >= self._policy.parallel_from:
            self._part.read_back(self._figures.md5 is not None, self._policy.fsync)
        return reply.start

    def _other_version(self, reply: Reply) -> bool:
        part = self._part
        if None not in (part.total, reply.total) and part.total != reply.total:
            return True
        return self._condition is not None and part.validators.disagrees(reply.validators)

    def _plan(self, reply: Reply, start: int, stop: int | None) -> tuple[int | None, deque[Range]]:
        """Where the first reply's part ends, and the blocks that other connections may fetch meanwhile."""
        total = self._total()
        safe = self._figures.hashed or self._condition
        if total is None or not self._large(total) or not reply.ranges or not safe:
            return (stop if reply.partial else None), deque()
        self._part.allocate()
        first, *rest = cut(self._part.ranges.gaps(total), self._policy.segment_bytes)
        return first[1], deque(rest)

    def _spread(self, blocks: deque[Range], errors: list[BaseException]) -> list[threading.Thread]:
        count = min(self._policy.segments - 1, len(blocks))
        threads = [
            threading.Thread(target=self._work, args=(blocks, errors), name=f"fetch-segment-{n}", daemon=True)
            for n in range(count)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _work(self, blocks: deque[Range], errors: list[BaseException]) -> None:
        """Fetch blocks until none is left; a transient failure ends this connection only, any other one all of them."""
        while blocks and not self._halt.is_set():
            try:
                start, stop = blocks.popleft()
            except IndexError:
                return
            try:
                self._block(start, stop)
            except Exception as error:  # `_fetch` raises it
                errors.append(error)
                if not (isinstance(error, Failure) and error.kind == "transient"):
                    self._halt.set()
                return

    def _block(self, start: int, stop: int) -> None:
        try:
            with self._session.open(self._request(start, stop)) as reply:
                if reply.start != start or not reply.partial or self._other_version(reply):
                    raise Failure("replaced", "the object was replaced while it was fetched")
                self._receive(reply, start, stop)
        except Unsatisfiable as answer:
            raise Failure("replaced", f"the object has {answer.total} bytes now") from answer

    def _receive(self, reply: Reply, start: int, stop: int | None) -> None:
        """Write the bytes of a reply from `start` on, up to `stop` if given, else to their end."""
        gate, at = SpeedGate(self._policy), start
        size = self._figures.size if stop is None else None
        end = self._total() if stop is None else stop
        piece = min(CHUNK, self._policy.checkpoint_bytes // 2, CHUNK if end is None else end - start)
        buffer = memoryview(bytearray(max(1, piece)))
        while stop is None or at < stop:
            data = receive(reply.body, buffer if stop is None else buffer[: stop - at])
            if self._session.stop.is_set() or self._halt.is_set():
                raise Stopped
            if not data:
                break
            if size is not None and at + len(data) > size:
                raise Failure("integrity", f"more than the expected {size} bytes came")
            self._keep(at, data)
            at += len(data)
            gate.passed(len(data))
        self._check_end(reply, at, stop)

    def _keep(self, at: int, data: memoryview) -> None:
        if at == 0:
            refuse_foreign(None, self._part.target.name, self._figures, bytes(data[:65536]))
        self._part.write(at, data)
        with self._lock:
            self.moved += len(data)
        self._session.progress.advance(self._label, len(data))

    def _check_end(self, reply: Reply, at: int, stop: int | None) -> None:
        """Raise Failure for a body that was cut, or that may have been."""
        goal = stop if stop is not None else (self._figures.size if reply.total is None else reply.total)
        if goal is not None and at < goal:
            raise Failure("transient", f"the body ended at byte {at} of {goal}")
        if goal is None:
            if not reply.ended and not self._figures.hashed:
                raise Failure("final", "the server names no length and none is declared: a cut could not be noticed")
            self._part.total = at

    def _unsatisfiable(self, total: int | None) -> bool:
        """416: what is there is everything (it will be hashed), or it is of another object."""
        covered, prefix = self._part.ranges.covered, self._part.ranges.prefix
        if covered == prefix and total in (None, covered) and self._figures.size in (None, covered):
            self._part.total = covered
            return False
        self.reset()
        raise Failure("replaced", f"the object has {total} bytes, {covered} are there")
