"""How a URL becomes bytes: a table scheme → opener; an opener answers a `Request` with a `Reply` or a Failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import urlsplit

from lavis_ext.fetch.transfer import Failure


@dataclass(frozen=True)
class Validators:
    """What tells one version of an object from another: `ETag` and `Last-Modified` as the server wrote them."""

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
    """The bytes of a reply."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes as soon as some are there, b"" at the end; raises Failure."""

    def close(self) -> None:
        """Give the connection back, or drop it if bytes are left."""

    def abort(self) -> None:
        """Wake a `read` that blocks in another thread."""


@dataclass(eq=False)
class Reply:
    """An answer: bytes from `start` of an object of `total` bytes (None: unknown).

    `partial` tells a 206 from a 200; `ended` says whether the end of the body can be told from a cut; `ranges`,
    whether the server takes ranges; `content_type` and `encoding` are the headers, "" where missing.
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


class Opener(Protocol):
    """Answers requests of one scheme."""

    def open(self, request: Request) -> Reply:
        """The bytes asked for (or the whole object from 0); raises Failure, Unsatisfiable."""


OpenerFactory = Callable[[Any], Opener]
"""From the session that an opener shares (`fetch.session.Session`, which stands on this table) to the opener."""
_FACTORIES: dict[str, OpenerFactory] = {}
_MODULES = {
    "http": "lavis_ext.fetch.http",
    "https": "lavis_ext.fetch.http",
    "file": "lavis_ext.fetch.backends",
    "hf": "lavis_ext.fetch.backends",
    "gdrive": "lavis_ext.fetch.backends",
    "azure": "lavis_ext.fetch.azure",
}
"""Where the openers are that come with the package: imported on first need."""


def register_opener(*schemes: str) -> Callable[[OpenerFactory], OpenerFactory]:
    """Decorator: this factory (session → opener) serves these URL schemes."""

    def enter(factory: OpenerFactory) -> OpenerFactory:
        for scheme in schemes:
            if scheme in _FACTORIES:
                raise ValueError(f"scheme {scheme!r} has an opener already: {_FACTORIES[scheme]!r}")
            _FACTORIES[scheme] = factory
        return factory

    return enter


def scheme_of(url: str) -> str:
    """The scheme of a URL, `file` for a plain path."""
    return urlsplit(url).scheme.lower() or "file"


def make_opener(scheme: str, session: Any) -> Opener:
    """The opener of a scheme; a Failure (unsafe) for a scheme that has none."""
    if scheme in _MODULES:
        import_module(_MODULES[scheme])
    if scheme not in _FACTORIES:
        raise Failure("unsafe", f"scheme {scheme!r} is refused (known: {', '.join(sorted({*_FACTORIES, *_MODULES}))})")
    return _FACTORIES[scheme](session)
