"""The values of fetching: a `Transfer` and its sources, `Policy`, `Result`, `Progress`, failures and retry delays."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, Protocol

from lavis_ext.common.errors import (
    AccessError,
    ConfigError,
    DiskError,
    IntegrityError,
    LavisExtError,
    NetworkError,
    UnsafeError,
)
from lavis_ext.common.files import to_disk_error
from lavis_ext.common.secrets import printable
from lavis_ext.fetch.safety import DENIED_HOSTS

Equivalence = Literal["byte_exact", "repacked", "reencoded", "subset"]
MIB = 1 << 20


@dataclass(frozen=True)
class Figures:
    """What a file must be: bytes and hexadecimal digests; None where nothing is declared."""

    size: int | None = None
    sha256: str | None = None
    md5: str | None = None

    @property
    def hashed(self) -> bool:
        """Whether a digest is declared."""
        return bool(self.sha256 or self.md5)

    @property
    def declared(self) -> bool:
        """Whether anything at all is declared."""
        return self.hashed or self.size is not None


@dataclass(frozen=True)
class Source:
    """One place that offers the file.

    `equivalence` says how its bytes relate to the declared ones; a source that is not `byte_exact` is held to its own
    `size`, `sha256`, `md5` and never continues another source's partial file. `trusted` marks a base that the user
    named (a mirror): plain http without a hash is then allowed.
    """

    url: str
    equivalence: str = "byte_exact"
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    trusted: bool = False

    @property
    def exact(self) -> bool:
        """Whether this source promises the very bytes that the transfer declares."""
        return self.equivalence == "byte_exact"


@dataclass(frozen=True)
class Transfer:
    """One list of sources → one local file; `label` names it in messages and progress (default: the file's name).

    `temporary`: the file is removed once it is unpacked, so it must be known as fetched whenever the process is killed.
    """

    path: Path
    sources: tuple[Source, ...]
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    label: str = ""
    temporary: bool = False

    @property
    def name(self) -> str:
        """What messages call this transfer."""
        return self.label or self.path.name

    def figures(self, source: Source | None = None) -> Figures:
        """What the file must be: the declared figures, or the source's own where it is not byte-exact."""
        if source is None:
            return Figures(self.size, _lower(self.sha256), _lower(self.md5))
        own = Figures(source.size, _lower(source.sha256), _lower(source.md5))
        if not source.exact:
            return own
        return Figures(
            self.size if own.size is None else own.size,
            own.sha256 or _lower(self.sha256),
            own.md5 or _lower(self.md5),
        )


def _lower(digest: str | None) -> str | None:
    return digest.lower() if digest else None


def is_set(variable: str) -> bool:
    """Whether an environment variable is on: any value but empty, 0, false, no."""
    return os.environ.get(variable, "").strip().lower() not in ("", "0", "false", "no")


def offline_from_environment() -> bool:
    """Whether `LAVIS_EXT_OFFLINE` forbids every socket."""
    return is_set("LAVIS_EXT_OFFLINE")


def private_from_environment() -> bool:
    """Whether `LAVIS_EXT_ALLOW_PRIVATE` lets redirects and rows of lists lead into this network."""
    return is_set("LAVIS_EXT_ALLOW_PRIVATE")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How to fetch: times in seconds, sizes in bytes."""

    jobs: int = 32
    """Files at a time."""
    per_host: int = 32
    """Connections to one host at a time, segments of large files included."""
    segments: int = 4
    """Connections that share one large file, for hosts that limit the speed of each connection."""
    parallel_from: int = 64 * MIB
    """Files at least this large are fetched in segments, where the server takes ranges."""
    segment_bytes: int = 16 * MIB
    """What one request of a large file asks for."""
    checkpoint_bytes: int = 1 << 19
    """A block: what a killed process loses of the bytes that it had written is less."""
    retries: int = 4
    """New attempts at one source after 408, 425, 429, 5xx or a broken connection without progress."""
    backoff: float = 0.5
    """First delay: the n-th is drawn from [0, min(backoff_cap, backoff · 2ⁿ)]."""
    backoff_cap: float = 30.0
    retry_after_cap: float = 120.0
    """The longest `Retry-After` that is waited for."""
    connect_timeout: float = 10.0
    """Per address of a host."""
    stall_timeout: float = 30.0
    """No byte of the file for this long, or no whole head of an answer: the connection is dropped, the file goes on."""
    min_speed: float = 1024.0
    """Bytes per second over `speed_window`; a slower source is left for the next."""
    speed_window: float = 30.0
    redirects: int = 10
    offline: bool = field(default_factory=offline_from_environment)
    """Open no socket; what is missing is named. Files of a local mirror are still copied."""
    deep: bool = False
    """Hash files that exist even where the ledger knows them."""
    allow_private: bool = field(default_factory=private_from_environment)
    """Follow redirects to private, loopback and link-local addresses other than the first host's own."""
    public_only: bool = False
    """Connect to no private, loopback or link-local address at all: for URLs that nobody has chosen."""
    owner_wait: float = 3600.0
    """The longest wait for another process that fetches the same file and makes progress."""
    owner_stall: float = 120.0
    """The longest wait while that process makes none."""
    owner_expiry: float = 120.0
    """An owner elsewhere whose heartbeat stands still for this long is taken over."""
    owner_watch: float = 5.0
    """Its heartbeat is watched for so long before, at least, whatever its stamp says: clocks jump."""
    fsync: bool = True
    """Flush a file and its folder to the disk before it counts as there."""
    ledger: Path | None = None
    """Where verified files are recorded; default `<folder of the file>/.lavis_ext/ledger.jsonl`."""
    denied_hosts: Mapping[str, str] = field(default_factory=lambda: DENIED_HOSTS)
    """Host → why nothing is fetched from it (subdomains included)."""
    user_agent: str = "lavis-ext"


@dataclass(frozen=True)
class Result:
    """What came of one transfer.

    `bytes_moved` counts what came over the wire (or from a local mirror), repeats included; `source` is the URL that
    delivered, without query and userinfo; `verified` is False where neither size nor hash was declared; `error` is set
    only in results of `fetch_all(…, collect=True)`.
    """

    path: Path
    bytes_moved: int = 0
    sha256: str | None = None
    source: str = ""
    reused: bool = False
    verified: bool = True
    equivalence: str = "byte_exact"
    notes: tuple[str, ...] = ()
    error: LavisExtError | None = None
    validator: str = ""
    """The ETag or date that named this version at `source`; "" where the file was there already, or none was sent."""

    @property
    def outcome(self) -> str:
        """One word: reused, fetched, unverified or failed."""
        if self.error is not None:
            return "failed"
        if not self.verified:
            return "unverified"
        return "reused" if self.reused else "fetched"


class Progress(Protocol):
    """Receives the bytes that arrive; called from several threads, keyed by the transfer's name."""

    def begin(self, label: str, total: int | None) -> None:
        """A file starts; `total` bytes where known."""

    def advance(self, label: str, count: int) -> None:
        """`count` more bytes are there (bytes kept from an earlier run included); negative when bytes are discarded."""

    def end(self, label: str, outcome: str) -> None:
        """The file is done: `Result.outcome`."""


class Silent:
    """Progress that shows nothing."""

    def begin(self, label: str, total: int | None) -> None:
        pass

    def advance(self, label: str, count: int) -> None:
        pass

    def end(self, label: str, outcome: str) -> None:
        pass


# Failures: why one attempt at one source failed, and the error when all sources have

Kind = Literal["transient", "final", "absent", "package", "ranges", "access", "unsafe", "integrity", "replaced"]


class Failure(Exception):
    """An attempt that failed; `kind` says what the engine does next.

    transient: the same source again, after a delay · final, access, unsafe: the next source · absent: the next source,
    this one has no such object · ranges: the next source, this one serves no parts · integrity: discard what came, try
    once more, then the next source · replaced: what is there belongs to another object, start over.
    `code` is the server's error code (Azure's `BlobNotFound`), "" where it sent none. A reason may hold what a server
    wrote: control characters are taken out of it.
    """

    def __init__(self, kind: Kind, reason: str, retry_after: float | None = None, code: str = "") -> None:
        self.reason = printable(reason, kept="")
        super().__init__(self.reason)
        self.kind: Kind = kind
        self.retry_after = retry_after
        self.code = code


class RangesUnsupported(NetworkError):
    """No source serves ranges of the object: only the whole of it can be fetched."""


class Unsatisfiable(Exception):
    """416: the server has nothing at that range; `total` is the object's size where the server sent it."""

    def __init__(self, total: int | None) -> None:
        super().__init__(f"range not satisfiable, total {total}")
        self.total = total


class Stopped(Exception):
    """Another part of the same run failed or was interrupted; the partial file and its sidecar are valid."""


_WAYS_OUT: dict[type[LavisExtError], str] = {
    AccessError: "sign in, accept the licence, or set the token that this host asks for (run `lavis-ext doctor`)",
    IntegrityError: "the host may have replaced the file: compare with its homepage, then correct the figures, "
    "accept it (`lavis-ext checksum NAME --accept`, then `prepare --locked`), or name another mirror",
    UnsafeError: "name a source that is safe",
    ConfigError: "install it (`lavis-ext doctor` lists what is missing), or name another mirror",
    NetworkError: "try again later, or name another mirror (LAVIS_EXT_MIRROR)",
}


def to_error(where: str, failures: list[tuple[str, Failure]]) -> LavisExtError:
    """The error for a transfer whose sources all failed: `failures` are (redacted URL, failure) in order.

    Bytes that did not match anywhere make it an IntegrityError; else the last reason decides.
    """
    kinds = [failure.kind for _, failure in failures]
    error: type[LavisExtError] = NetworkError
    if any(kind in ("integrity", "replaced") for kind in kinds):
        error = IntegrityError
    elif "ranges" in kinds:
        error = RangesUnsupported
    elif kinds and kinds[-1] == "access":
        error = AccessError
    elif kinds and kinds[-1] == "unsafe":
        error = UnsafeError
    elif kinds and kinds[-1] == "package":
        error = ConfigError
    reasons = "; ".join(f"{url}: {failure.reason}" for url, failure in failures) or "no source is declared"
    way_out = next(way for kind, way in _WAYS_OUT.items() if issubclass(error, kind))
    return error(where, reasons, way_out)


def disk_error(error: OSError, path: Path) -> DiskError:
    """An OSError of the file system as DiskError that says what to free or change; what was fetched is kept."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    way_out = "choose another cache_root" if full else "choose a cache_root that you may write to"
    return to_disk_error(error, path, f"{way_out}; what was fetched is kept, run again to continue")


# When to try again, and when a connection is too slow

OFFLINE = "leave out --offline, or unset LAVIS_EXT_OFFLINE"
"""The way out where no connection may be opened."""
PROGRESS_THAT_COUNTS = 1 << 16
"""Bytes by which an attempt must go beyond the best so far to start the count of retries again."""


def backoff(attempt: int, policy: Policy, retry_after: float | None = None) -> float:
    """Seconds before attempt `attempt` + 1: full jitter over a doubling ceiling, at least `retry_after`, capped."""
    ceiling = min(policy.backoff_cap, policy.backoff * 2.0 ** min(attempt, 30))
    jitter = random.uniform(0.0, ceiling)
    return max(jitter, min(retry_after or 0.0, policy.retry_after_cap))


def parse_retry_after(value: str | None) -> float | None:
    """`Retry-After` as seconds from now, from its number or HTTP-date form (RFC 9110 §10.2.3); None if neither."""
    if not value:
        return None
    text = value.strip()
    if text.isdigit():
        return float(text[:12])
    from email.utils import parsedate_to_datetime  # a package of its own, which hardly any run needs

    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())


class SpeedGate:
    """Raises a Failure when a connection delivers less than `min_speed` over `speed_window` seconds."""

    def __init__(self, policy: Policy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._since = clock()
        self._count = 0

    def passed(self, count: int) -> None:
        """`count` more bytes came."""
        self._count += count
        elapsed = self._clock() - self._since
        if elapsed < self._policy.speed_window:
            return
        speed = self._count / elapsed
        if speed < self._policy.min_speed:
            raise Failure(
                "final", f"too slow: {speed:.0f} B/s over {elapsed:.0f} s (min_speed {self._policy.min_speed:.0f})"
            )
        self._since, self._count = self._clock(), 0
