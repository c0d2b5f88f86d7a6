"""The partial file beside its target and the sidecar that says which bytes of which object it holds."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lavis_ext.common.files import decode_json
from lavis_ext.fetch.safety import identity
from lavis_ext.fetch.session import Flusher, Validators
from lavis_ext.fetch.transfer import Figures, Source

log = logging.getLogger(__name__)
FORMAT = 1
LONGEST_NAME = 255 - len(".part.owner.takeover-0000000000")
Range = tuple[int, int]
"""`[start, stop)` in bytes."""


class Ranges:
    """A set of byte positions, kept as sorted, disjoint half-open ranges."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[Range]:
        return iter(zip(self._starts, self._stops, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    @property
    def covered(self) -> int:
        """How many bytes are there."""
        return sum(self._stops) - sum(self._starts)

    @property
    def stop(self) -> int:
        """One past the last byte that is there, 0 if none."""
        return self._stops[-1] if self._stops else 0

    @property
    def prefix(self) -> int:
        """How many bytes are there from the beginning without a gap."""
        return self._stops[0] if self._starts and self._starts[0] == 0 else 0

    def add(self, start: int, stop: int) -> None:
        """Bytes `[start, stop)` are there; touching and overlapping ranges merge."""
        if start < 0 or stop < start:
            raise ValueError(f"not a range: [{start}, {stop})")
        if start == stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def clip(self, size: int) -> None:
        """Forget everything from `size` on."""
        kept = [(start, min(stop, size)) for start, stop in self if start < size]
        self._starts = [start for start, _ in kept]
        self._stops = [stop for _, stop in kept]

    def gaps(self, size: int) -> list[Range]:
        """What is missing of a file of `size` bytes."""
        found, at = [], 0
        for start, stop in self:
            if start >= size:
                break
            if start > at:
                found.append((at, start))
            at = stop
        if at < size:
            found.append((at, size))
        return found


def cut(gaps: Iterable[Range], length: int) -> list[Range]:
    """The same gaps in pieces of at most `length` bytes, in order."""
    if length < 1:
        raise ValueError(f"pieces of {length} bytes")
    return [(at, min(at + length, stop)) for start, stop in gaps for at in range(start, stop, length)]


def companion(path: Path, suffix: str) -> Path:
    """`name` + suffix beside a file; a name too long for that is shortened, with a digest so that it stays unique."""
    name = path.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        name = f"{os.fsencode(name)[:100].decode('utf-8', 'ignore')}-{digest}"
    return path.with_name(name + suffix)


@cache
def boot_id() -> str:
    """The kernel's id of this boot of the machine, "" where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


class Part:
    """`name.part` and `name.part.json`.

    The sidecar is written after the bytes that it lists, at least every `checkpoint` bytes and on `close`, so a killed
    process loses what came since and never counts a byte that is not there. It holds no query string.
    """

    def __init__(self, target: Path, checkpoint: int) -> None:
        self.target = target
        self.path = companion(target, ".part")
        self.sidecar = companion(target, ".part.json")
        self.ranges = Ranges()
        self.url = ""
        self.equivalence = ""
        self.validators = Validators()
        self.total: int | None = None
        self._boot = boot_id()
        self._written_on: str | None = None
        """The boot on which the sidecar that was found was written."""
        self._recorded = self.sidecar.exists()
        self._checkpoint = checkpoint
        self._unsaved = 0
        self._lock = threading.Lock()
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._load()

    def close(self) -> None:
        """Write the sidecar if there is something to continue, else leave nothing behind; raises OSError."""
        if self.fd < 0:
            return
        try:
            if self.ranges.covered:
                self.save()
            else:
                self.path.unlink(missing_ok=True)
                self._remove_sidecar()
        finally:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def publish(self, flusher: Flusher | None) -> None:
        """Make the part the target: flush it, rename it, flush the folder, forget the sidecar; raises OSError.

        Without a flusher nothing is flushed.
        """
        if flusher is not None:
            os.fsync(self.fd)
        self.path.replace(self.target)
        fd, self.fd = self.fd, -1
        os.close(fd)
        if flusher is not None:
            flusher.flush(self.target.parent)
        self._remove_sidecar()

    def _remove_sidecar(self) -> None:
        if self._recorded:
            self.sidecar.unlink(missing_ok=True)
            self._recorded = False

    def reset(self) -> int:
        """Discard the bytes; returns how many there were. The sidecar that lists them is removed first."""
        with self._lock:
            lost = self.ranges.covered
            self._remove_sidecar()
            os.ftruncate(self.fd, 0)
            self.ranges, self.total, self.validators, self.url = Ranges(), None, Validators(), ""
            self._unsaved = 0
        return lost

    def resume_condition(self, source: Source, figures: Figures) -> str | None:
        """The `If-Range` condition under which the bytes that are there are continued from `source`.

        None where a declared hash decides about the result, or nothing is there. Bytes that may not be continued are
        discarded: `wget -c`, `curl -C -` and `aria2c -c` join the halves of two versions, and exit with 0.
        """
        if not self.ranges.covered:
            return None
        reason = self._obstacle(source, figures)
        if reason:
            log.warning("%s: starting over: %s", self.path.name, reason)
            self.reset()
            return None
        if self.url == identity(source.url):
            return self.validators.strong
        return None if figures.hashed else self.validators.strong

    def record_validators(self, source: Source, validators: Validators, total: int | None) -> None:
        """Record of which object the bytes are."""
        with self._lock:
            self.url, self.equivalence = identity(source.url), source.equivalence
            self.validators = validators
            self.total = total if total is not None else self.total

    def allocate(self) -> None:
        """Give the file its final length (sparse), for segments that are written out of order."""
        if self.total is not None:
            os.ftruncate(self.fd, self.total)

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes at `offset` and count them as there; raises OSError."""
        view, at = memoryview(data), offset
        while view:
            written = os.pwrite(self.fd, view, at)
            view, at = view[written:], at + written
        with self._lock:
            self.ranges.add(offset, at)
            self._unsaved += at - offset
            if self._unsaved >= self._checkpoint:
                self._save()

    @property
    def prefix(self) -> int:
        """How many bytes are there from the beginning; safe while other threads write."""
        with self._lock:
            return self.ranges.prefix

    def save(self) -> None:
        """Write the sidecar now; raises OSError."""
        with self._lock:
            self._save()

    def _save(self) -> None:
        state = {
            "format": FORMAT,
            "url": self.url,
            "equivalence": self.equivalence,
            "etag": self.validators.etag,
            "last_modified": self.validators.last_modified,
            "size": self.total,
            "boot": self._boot,
            "done": list(self.ranges),
        }
        temporary = self.sidecar.with_name(self.sidecar.name + ".tmp")
        temporary.write_text(json.dumps(state), "utf-8")
        temporary.replace(self.sidecar)
        self._recorded = True
        self._unsaved = 0

    def _load(self) -> None:
        size = os.fstat(self.fd).st_size
        if not size:
            self._remove_sidecar()
            return
        try:
            self._restore(decode_json(self.sidecar.read_text("utf-8")), size)
        except FileNotFoundError:
            log.warning("%s: starting over: there is no record of what it holds", self.path.name)
            self.reset()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("%s: starting over: its record cannot be read (%s)", self.path.name, error)
            self.reset()

    def _restore(self, state: dict[str, Any], size: int) -> None:
        ranges = Ranges((int(start), int(stop)) for start, stop in state["done"])
        total = state["size"]
        if state["format"] != FORMAT or ranges.stop > size or not isinstance(total, int | None):
            raise ValueError("it does not fit the file")
        self.url, self.equivalence = str(state["url"]), str(state["equivalence"])
        self.validators = Validators(state["etag"], state["last_modified"])
        self.ranges, self.total, self._written_on = ranges, total, state.get("boot")

    def _obstacle(self, source: Source, figures: Figures) -> str | None:
        """Why the bytes that are there may not be continued from this source, or None."""
        size = os.fstat(self.fd).st_size
        if figures.size is not None and size > figures.size:
            return f"{size} bytes are there, the file has {figures.size}"
        if None not in (figures.size, self.total) and figures.size != self.total:
            return f"it was of an object of {self.total} bytes"
        if not figures.hashed and self._written_on is not None and self._written_on != self._boot:
            return "the machine was restarted since, and no hash is declared"
        if self.url == identity(source.url):
            return None if figures.hashed or self.validators.strong else "no hash is declared, nor a version named"
        if not (source.exact and self.equivalence == "byte_exact"):
            return "it came from a source with other bytes"
        etag = self.validators.etag
        return None if figures.hashed or (etag and not etag.startswith("W/")) else "it came from another source"
