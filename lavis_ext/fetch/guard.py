"""Guards what other libraries fetch by urllib for URLs out of data rows: addresses, schemes, size and time."""

from __future__ import annotations

import http.client
import socket
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPResponse
from types import TracebackType
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

from lavis_ext.fetch.safety import REMOTE_SCHEMES, is_private

CHUNK = 1 << 16
REFUSED, CUT = "refused: ", "cut: "


class Refused(URLError):
    """What the guard does not let pass; the text begins with the kind of the reason."""

    def __str__(self) -> str:
        return str(self.reason)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one answer may be; `inspect` gets the whole body and its final URL and raises for what is not wanted."""

    allow_private: bool = False
    """Let names and redirects lead to private, loopback and link-local addresses."""
    max_bytes: int = 64 << 20
    """Of a body."""
    deadline: float = 60.0
    """Seconds for a whole body, so that a server that drips does not hold a thread."""
    inspect: Callable[[bytes, str], object] | None = None


def install_guard(limits: Limits) -> None:
    """Make `urllib.request.urlopen` of this whole process a guarded one: http and https only, no files, no FTP."""
    urllib.request.install_opener(make_guarded_opener(limits))


def make_guarded_opener(limits: Limits) -> urllib.request.OpenerDirector:
    """An opener with these handlers and no others; proxies of the environment are used as urllib does."""
    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        _Http(limits.allow_private),
        _Https(limits.allow_private),
        _Bodies(limits),
    ]
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def connect_public(address: tuple[str, int], timeout: Any = None, source: Any = None) -> socket.socket:
    """A connection to the very addresses that were checked; one private address among a name's refuses the name."""
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    inside = [str(entry[4][0]) for entry in found if is_private(str(entry[4][0]))]
    if inside:
        raise Refused(f"{REFUSED}private address {inside[0]}")
    errors: list[OSError] = []
    for entry in found:
        try:
            return socket.create_connection(entry[4][:2], timeout, source)  # type: ignore[arg-type]
        except OSError as error:
            errors.append(error)
    raise errors[0] if errors else OSError("no address")


class _PublicHTTP(http.client.HTTPConnection):
    """A plain connection to public addresses; through a proxy it is the proxy that resolves."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._create_connection = connect_public


class _PublicHTTPS(http.client.HTTPSConnection):
    """A TLS connection to public addresses."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._create_connection = connect_public


def _is_free(request: urllib.request.Request, allow_private: bool) -> bool:
    """Whether the peer's address is not ours to judge."""
    return allow_private or request.has_proxy() or bool(getattr(request, "_tunnel_host", None))


class _Http(urllib.request.HTTPHandler):
    def __init__(self, allow_private: bool) -> None:
        super().__init__()
        self._allow_private = allow_private

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        """Open over a guarded connection."""
        kind = http.client.HTTPConnection if _is_free(req, self._allow_private) else _PublicHTTP
        return self.do_open(kind, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, allow_private: bool) -> None:
        super().__init__()
        self._allow_private = allow_private

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        """Open over a guarded connection; certificates are checked."""
        kind = http.client.HTTPSConnection if _is_free(req, self._allow_private) else _PublicHTTPS
        return self.do_open(kind, req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Follow to http and https only."""
        scheme = urlsplit(newurl).scheme.lower()
        if scheme not in REMOTE_SCHEMES:
            raise Refused(f"{REFUSED}redirect to scheme '{scheme}'")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_308(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """As 307; Python 3.10 lacks it."""
        return self.http_error_302(req, fp, 307, msg, headers)


class _Bodies(urllib.request.BaseHandler):
    """Wraps every final answer, so that `read()` keeps to the limits."""

    handler_order = 2000  # after redirects and errors

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def http_response(self, req: urllib.request.Request, response: HTTPResponse) -> GuardedResponse:
        """The answer, guarded."""
        return GuardedResponse(response, self._limits)

    https_response = http_response


class GuardedResponse:
    """What urlopen returns: a context manager with `headers` and a `read()` that raises Refused beyond the limits."""

    def __init__(self, response: HTTPResponse, limits: Limits) -> None:
        self._response = response
        self._limits = limits
        self.headers = response.headers

    def __enter__(self) -> GuardedResponse:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._response.close()

    def read(self) -> bytes:
        """The whole body, inspected."""
        data, end = bytearray(), time.monotonic() + self._limits.deadline
        while piece := self._response.read1(CHUNK):
            data += piece
            if len(data) > self._limits.max_bytes:
                raise Refused(f"{REFUSED}more than {self._limits.max_bytes} bytes")
            if time.monotonic() > end:
                raise Refused(f"timed out: the body took longer than {self._limits.deadline:g} s")
        if self._response.length:
            raise Refused(f"{CUT}the body ended {self._response.length} bytes early")
        body = bytes(data)
        if self._limits.inspect is not None:
            self._limits.inspect(body, self._response.url)
        return body
