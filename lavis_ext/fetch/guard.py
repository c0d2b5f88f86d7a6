"""Limits on what other libraries fetch through urllib from URLs in data rows: schemes, addresses, size and time."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPResponse
from types import TracebackType
from typing import Any
from urllib.error import URLError
from urllib.parse import urljoin, urlsplit

from lavis_ext.fetch.safety import REMOTE_SCHEMES, addresses, is_private, split_url

CHUNK = 1 << 16
REFUSED, CUT = "refused: ", "cut: "


class Refused(URLError):
    """A request or answer that is not allowed; the text begins with the kind of the reason (REFUSED, CUT)."""

    def __str__(self) -> str:
        return str(self.reason)


@dataclass(frozen=True, kw_only=True)
class ResponseLimits:
    """What one answer may be; `inspect` gets the whole body and its final URL and raises for what is not wanted."""

    allow_private: bool = False
    """Let names and redirects lead to private, loopback and link-local addresses."""
    max_bytes: int = 64 << 20
    """Of a body."""
    deadline: float = 60.0
    """Seconds for the head of an answer, and for its body, so that a server that drips does not hold a thread."""
    inspect: Callable[[bytes, str], object] | None = None


def install_guard(limits: ResponseLimits) -> None:
    """Make `urllib.request.urlopen` of this whole process a guarded one: http and https only, no files, no FTP."""
    urllib.request.install_opener(make_guarded_opener(limits))


def make_guarded_opener(limits: ResponseLimits) -> urllib.request.OpenerDirector:
    """An opener with these handlers and no others; proxies of the environment are used as urllib does."""
    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        _Http(limits),
        _Https(limits),
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


class _Timed(http.client.HTTPConnection):
    """A connection whose answer must begin within `deadline` seconds, however slowly its head drips."""

    def __init__(self, *args: Any, deadline: float, public: bool, **more: Any) -> None:
        super().__init__(*args, **more)
        self._deadline = deadline
        if public:
            self._create_connection = connect_public

    def getresponse(self) -> HTTPResponse:
        over = threading.Event()
        timer = threading.Timer(self._deadline, _shut, [self.sock, over])
        timer.daemon = True
        timer.start()
        try:
            answer = super().getresponse()
        except (OSError, http.client.HTTPException) as error:
            if over.is_set():  # the peer may have answered with a reset
                raise self._late() from error
            raise
        finally:
            timer.cancel()
        if over.is_set():  # a head that was cut may still look whole
            answer.close()
            raise self._late()
        return answer

    def _late(self) -> TimeoutError:
        return TimeoutError(f"timed out: no answer within {self._deadline:g} s")


class _TimedTLS(_Timed, http.client.HTTPSConnection):
    """The same over TLS; certificates are checked."""


def _shut(peer: socket.socket, over: threading.Event) -> None:
    over.set()
    with suppress(OSError):
        socket.socket.shutdown(peer, socket.SHUT_RDWR)  # past TLS, which another thread is busy with


class _Http(urllib.request.HTTPHandler):
    def __init__(self, limits: ResponseLimits) -> None:
        super().__init__()
        self._limits = limits

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_timed(_Timed, req, self._limits), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, limits: ResponseLimits) -> None:
        super().__init__()
        self._limits = limits

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_timed(_TimedTLS, req, self._limits), req)


def _timed(kind: type[_Timed], request: urllib.request.Request, limits: ResponseLimits) -> Any:
    """The factory of a connection; addresses are not checked where all are allowed, or where a proxy resolves them.

    A proxy is not asked for what is an address itself, in any spelling, and leads inside.
    """
    proxied = bool(request.has_proxy() or getattr(request, "_tunnel_host", None))
    host = split_url(request.full_url).hostname or ""
    if proxied and not limits.allow_private:
        for address in filter(is_private, addresses(host, numeric=True)):
            raise Refused(f"{REFUSED}private address {address}")
    return partial(kind, deadline=limits.deadline, public=not (limits.allow_private or proxied))


class _Redirects(urllib.request.HTTPRedirectHandler):
    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """Follow to http and https only; 308 as 307, which Python 3.10 knows."""
        target = urljoin(req.full_url, headers.get("Location") or headers.get("URI") or "")
        scheme = urlsplit(target).scheme.lower()
        if scheme not in REMOTE_SCHEMES:
            raise Refused(f"{REFUSED}redirect to scheme '{scheme}'")
        return super().http_error_302(req, fp, 307 if code == 308 else code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Bodies(urllib.request.BaseHandler):
    """Wraps every final answer, so that `read()` keeps to the limits."""

    handler_order = 2000  # after redirects and errors

    def __init__(self, limits: ResponseLimits) -> None:
        self._limits = limits

    def http_response(self, req: urllib.request.Request, response: HTTPResponse | GuardedResponse) -> GuardedResponse:
        """The answer, guarded; after a redirect it is guarded already."""
        return response if isinstance(response, GuardedResponse) else GuardedResponse(response, self._limits)

    https_response = http_response


class GuardedResponse:
    """What urlopen returns: a context manager with `headers` and a `read()` that raises Refused beyond the limits."""

    def __init__(self, response: HTTPResponse, limits: ResponseLimits) -> None:
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
