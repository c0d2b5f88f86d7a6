"""The opener of http and https: ranges with `If-Range`, guarded redirects, proxies of the environment, no decoding.

By urllib3 in threads, which gives us each redirect, the open socket's address and the raw bytes; `benchmarks/fetch.md`
compares it with others.
"""

from __future__ import annotations

import http.client
import io
import logging
import re
import socket
import ssl
import threading
import time
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    SSLError,
)
from urllib3.response import BaseHTTPResponse
from urllib3.util.connection import create_connection

from lavis_ext.fetch.safety import (
    addresses,
    deny_reason,
    is_loopback,
    leads_inside,
    may_dial,
    redact,
    redact_url,
    redirect_reason,
    url_fault,
)
from lavis_ext.fetch.session import Reply, Request, Session, Validators, register_opener
from lavis_ext.fetch.transfer import Failure, Kind, Unsatisfiable, parse_retry_after

TRANSIENT = frozenset({408, 425, 429})
ACCESS = frozenset({401, 403, 407, 409})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
BOUND_TO_HOST = frozenset({"authorization", "cookie", "proxy-authorization"})
"""Headers that are dropped where a redirect leads to another origin."""
ERROR_BODY = 4096
"""How much of an error's body is read."""
CHAIN = 2
"""How many times the patience for one answer a chain of redirects may take in all."""
ADDRESSES = 3
"""How many times the patience for one address a connection may take in all."""
Inside = frozenset[str] | None
"""The private addresses that a guarded connection may go to; None: it is not guarded."""

_CODE = re.compile(rb"<Code>(\w{1,80})</Code>")
_CONTENT_RANGE = re.compile(r"bytes\s+(?:(\d+)-(\d+)|\*)/(\d+|\*)$", re.IGNORECASE)
_NEXT = re.compile(r"<([^<>]{1,4096})>\s*;\s*rel=\"?next")

# Connections. urllib3 bounds each `recv`; here the whole head of an answer, and each read of a body, has an end,
# however slowly its bytes drip.


class TimedStream(io.RawIOBase):
    """The raw stream of an answer: every read ends at `until`, by the monotonic clock."""

    def __init__(self, raw: io.RawIOBase, peer: socket.socket) -> None:
        self._raw, self._peer = raw, peer
        self.until = time.monotonic() + (peer.gettimeout() or 0.0)
        self._met: OSError | None = None
        """What ended the connection behind bytes that were given."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._met is not None:
            raise self._met
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out: it came too slowly")
        given = self._peer.gettimeout()
        if given is None or not 0.98 * given <= left <= given:  # a system call, and the next reader's patience is new
            self._peer.settimeout(left)
        count = self._raw.readinto(buffer)
        if count and count < len(buffer) and isinstance(self._peer, ssl.SSLSocket):
            count += self._decrypt_more(memoryview(buffer)[count:])
        return count

    def _decrypt_more(self, room: memoryview) -> int:
        """What else has arrived: TLS gives one record, 16 KiB, at a time, and a piece costs as much as a large one."""
        count, patience = 0, self._peer.gettimeout()
        self._peer.settimeout(0.0)
        try:
            while count < len(room) and (more := self._peer.recv_into(room[count:])):
                count += more
        except (ssl.SSLWantReadError, BlockingIOError):
            pass
        except OSError as error:
            self._met = error
        finally:
            self._peer.settimeout(patience)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class TimedResponse(http.client.HTTPResponse):
    """http.client's response on such a stream; its status line and headers are read by the end of the timeout."""

    def __init__(self, sock: socket.socket, *args: Any, **named: Any) -> None:
        super().__init__(sock, *args, **named)
        self.stream = TimedStream(self.fp.detach(), sock)
        self.fp = io.BufferedReader(self.stream)

    def receive_into(self, buffer: memoryview) -> int:
        """What has arrived of a body that is not chunked, 0 at its end: `read1` without a new object for each piece."""
        if self.fp is None:
            return 0
        count: int = self.fp.readinto1(buffer if self.length is None else buffer[: self.length])
        if self.length is not None:
            self.length -= count
        if not count or self.length == 0:
            self.close()
        return count


class _Connection:
    """What our connections add to urllib3's. With `inside` (not None) private addresses are refused.

    The very addresses that are dialled are judged: DNS may answer differently the second time.
    """

    inside: Inside = None
    response_class = TimedResponse

    def _new_conn(self: Any) -> socket.socket:
        host, patience = self._dns_host.strip("[]"), self.timeout
        try:
            found = socket.getaddrinfo(host, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except UnicodeError:
            raise LocationParseError(f"'{host}', label empty or too long") from None
        targets = list(dict.fromkeys((str(entry[4][0]), int(entry[4][1])) for entry in found))
        for address, _ in targets if self.inside is not None else ():
            if not may_dial(address, self.inside):
                raise Failure(
                    "unsafe", f"the private address {address} is refused (LAVIS_EXT_ALLOW_PRIVATE=1 allows it)"
                )
        begun, last = time.monotonic(), OSError("it has no address")
        for target in targets:
            try:
                return create_connection(target, patience, self.source_address, self.socket_options)
            except OSError as error:
                last = error
            if time.monotonic() - begun > ADDRESSES * (patience or 0.0):
                break
        if isinstance(last, TimeoutError):
            raise ConnectTimeoutError(self, f"{self.host} timed out (connect timeout={patience})") from last
        raise NewConnectionError(self, f"Failed to establish a new connection: {last}") from last


def make_pools(inside: Inside) -> dict[str, type[HTTPConnectionPool]]:
    """urllib3's pools with our connections, by scheme."""
    plain = type("Connection", (_Connection, HTTPConnection), {"inside": inside})
    secure = type("TLSConnection", (_Connection, HTTPSConnection), {"inside": inside})
    return {
        "http": type("Pool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("TLSPool", (HTTPSConnectionPool,), {"ConnectionCls": secure}),
    }


# The opener


class HttpBody:
    """The raw bytes of a response, undecoded, as they come."""

    def __init__(self, response: BaseHTTPResponse, patience: float) -> None:
        self._response = response
        self._patience = patience
        raw = getattr(response, "_original_response", None)
        self._stream: TimedStream | None = getattr(raw, "stream", None)
        self._plain = raw if isinstance(raw, TimedResponse) and not raw.chunked else None

    def read(self, size: int) -> bytes:
        """What has arrived, up to `size` bytes; raises Failure on a stall or a broken connection."""
        self._wait_anew()
        try:
            return self._response.read1(size, decode_content=False) or b""
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raise Failure("transient", explain(error)) from error

    def readinto(self, buffer: memoryview) -> int:
        """`read` into a buffer, below urllib3 where the body is not chunked; the same body is read in one way only."""
        if self._plain is None:
            data = self.read(len(buffer))
            buffer[: len(data)] = data
            return len(data)
        self._wait_anew()
        try:
            count = self._plain.receive_into(buffer)
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise Failure("transient", explain(error)) from error
        if not count and self._plain.length:
            self._response.close()  # with its connection, which urllib3 believes to be at the end of this body
            raise Failure("transient", f"the body ended {self._plain.length} bytes early")
        return count

    def _wait_anew(self) -> None:
        if self._stream is not None:
            self._stream.until = time.monotonic() + self._patience  # sizes of chunks and trailers may drip too

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else drop it."""
        if not self._response.closed:
            self._response.close()
        self._response.release_conn()

    def abort(self) -> None:
        """Shut the socket down for reading: a blocked read ends."""
        try:
            self._response.shutdown()
        except (ValueError, RuntimeError, OSError):
            return  # it has ended by itself


@register_opener("http", "https")
class HttpOpener:
    """Answers from the network through pooled connections."""

    def __init__(self, session: Session) -> None:
        self._policy = session.policy
        self._managers: dict[tuple[str, Inside], urllib3.PoolManager] = {}
        self._proxies: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()
        redact_url_loggers()

    def open(self, request: Request, headers: dict[str, str] | None = None) -> Reply:
        """The reply after redirects; `headers` are sent too, those with secrets only to the first host."""
        parts = urlsplit(request.url)
        if parts.scheme == "http" and not (request.trusted or is_loopback(parts.hostname or "")):
            raise Failure("unsafe", "plain http without a declared hash is refused")
        sent = self._headers(request, headers)
        url, inside = request.url, frozenset[str]() if self._policy.public_only else None
        until = time.monotonic() + CHAIN * self._policy.stall_timeout
        for _ in range(self._policy.redirects + 1):
            response = self._send(url, sent, inside, until)
            target = response.headers.get("Location") if response.status in REDIRECTS else None
            if not target:
                if response.status in (200, 206):
                    return read_head(request, response, self._policy.stall_timeout)
                failure = status_failure(response, url)
                response.close()
                raise failure
            _discard(response)
            following = redirect_target(url, target)
            guard = self._check_redirect(request.url, url, following)
            inside = guard if inside is None else inside
            if _origin(following) != _origin(url):
                sent = {name: value for name, value in sent.items() if name.lower() not in BOUND_TO_HOST}
            url = following
        raise Failure("final", f"more than {self._policy.redirects} redirects")

    def close(self) -> None:
        """Close pooled connections."""
        for manager in self._managers.values():
            manager.clear()

    def _headers(self, request: Request, more: dict[str, str] | None) -> dict[str, str]:
        # identity: sizes and hashes are of the file as it is published, and ranges of an encoded body would not fit it
        sent = {"User-Agent": self._policy.user_agent, "Accept": "*/*", "Accept-Encoding": "identity", **(more or {})}
        if not request.whole:
            last = "" if request.stop is None else str(request.stop - 1)
            sent["Range"] = f"bytes={request.start}-{last}"
            if request.condition:
                sent["If-Range"] = request.condition
        return sent

    def _check_redirect(self, first: str, before: str, after: str) -> Inside:
        """The guard of connections for `after`; raises Failure for a redirect that is not allowed.

        A host inside may lead to its own addresses, loopback to loopback, and nobody to others: what a mirror answers
        must not choose which machine of this network is asked (169.254.169.254 hands out credentials).
        """
        reason = redirect_reason(before, after) or deny_reason(after, self._policy.denied_hosts)
        if reason:
            raise Failure("unsafe", f"{reason} (to {redact_url(after)})")
        if self._policy.allow_private or _origin(first) == _origin(after):
            return None
        host = urlsplit(first).hostname or ""
        return frozenset(addresses(host)) if leads_inside(host) else frozenset()

    def _send(self, url: str, headers: dict[str, str], inside: Inside, until: float) -> BaseHTTPResponse:
        left = until - time.monotonic()
        if left <= 0:
            raise Failure("transient", f"no answer within {CHAIN * self._policy.stall_timeout:g} s, redirects included")
        patience = min(self._policy.stall_timeout, left)
        timeout = urllib3.Timeout(connect=min(self._policy.connect_timeout, left), read=patience)
        try:
            return self._manager(url, inside).request(
                "GET",
                url,
                headers=headers,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=timeout,
            )
        except SSLError as error:
            raise Failure("final", f"TLS verification failed: {explain(error)}") from error
        except LocationParseError as error:
            raise Failure("final", "not a URL") from error
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raise Failure("transient", explain(error)) from error

    def _manager(self, url: str, inside: Inside) -> urllib3.PoolManager:
        parts = urlsplit(url)
        host = parts[:2]
        proxy = self._proxies.get(host)
        if proxy is None:  # once per host, not per file: it is measurable (benchmarks/fetch.md)
            proxy = self._proxies[host] = proxy_for(url)
        if proxy and inside is not None:  # the proxy resolves names, so that only addresses can be judged here
            for address in addresses(parts.hostname or "", numeric=True):
                if not may_dial(address, inside):
                    raise Failure(
                        "unsafe", f"the private address {address} is refused (LAVIS_EXT_ALLOW_PRIVATE=1 allows it)"
                    )
        with self._lock:
            if (proxy, inside) not in self._managers:
                self._managers[proxy, inside] = self._make_manager(proxy, inside)
            return self._managers[proxy, inside]

    def _make_manager(self, proxy: str, inside: Inside) -> urllib3.PoolManager:
        size = self._policy.per_host
        manager = _proxy_manager(proxy, size) if proxy else urllib3.PoolManager(num_pools=64, maxsize=size)
        manager.pool_classes_by_scheme = make_pools(None if proxy else inside)
        return manager


def redirect_target(url: str, location: str) -> str:
    """Where a `Location` leads; raises Failure where that is no URL."""
    try:
        target = urljoin(url, location)
    except ValueError as error:
        raise Failure("final", "redirect to what is not a URL") from error
    fault = url_fault(target)
    if fault and redirect_reason(url, target) is None:
        raise Failure("final", f"redirect to what is {fault}")
    return target


def read_head(request: Request, response: BaseHTTPResponse, patience: float) -> Reply:
    """The head of a 200 or 206 as a Reply; a 206 that was not asked for, or that is malformed, raises Failure."""
    headers = response.headers
    length = int(headers["Content-Length"]) if headers.get("Content-Length", "").isdigit() else None
    start, total = 0, length
    if response.status == 206:
        found = _CONTENT_RANGE.match(headers.get("Content-Range", "").strip())
        if found is None or found[1] is None or request.whole:
            response.close()
            raise Failure("transient", "206 without a usable Content-Range")
        start = int(found[1])
        total = None if found[3] == "*" else int(found[3])
    return Reply(
        start,
        total,
        HttpBody(response, patience),
        Validators(headers.get("ETag"), headers.get("Last-Modified")),
        partial=response.status == 206,
        ranges=response.status == 206 or headers.get("Accept-Ranges", "").strip().lower() == "bytes",
        ended=length is not None or "chunked" in headers.get("Transfer-Encoding", "").lower(),
        content_type=headers.get("Content-Type", "").partition(";")[0].strip().lower(),
        encoding=headers.get("Content-Encoding", "").strip().lower().replace("identity", ""),
        following=next(iter(_NEXT.findall(headers.get("Link", ""))), ""),
    )


def status_failure(response: BaseHTTPResponse, url: str) -> Failure | Unsatisfiable:
    """What a status other than 200 and 206 means for this source."""
    status = response.status
    if status == 416:
        found = _CONTENT_RANGE.match(response.headers.get("Content-Range", "").strip())
        return Unsatisfiable(int(found[3]) if found and found[3] != "*" else None)
    reason = f"HTTP {status} {response.reason or ''}".rstrip()
    code = error_code(response)
    reason += f" ({code})" if code else ""
    if status in ACCESS:
        return Failure("access", f"{reason}: access denied by {urlsplit(url).hostname}", code=code)
    if status in TRANSIENT or status >= 500:
        return Failure("transient", reason, parse_retry_after(response.headers.get("Retry-After")), code)
    kind: Kind = "absent" if status in (404, 410) else "replaced" if status == 412 else "final"
    return Failure(kind, reason, code=code)


def error_code(response: BaseHTTPResponse) -> str:
    """The server's error code, from Azure's header or the `<Code>` of an XML body; "" without one."""
    named = response.headers.get("x-ms-error-code", "")
    if not named and "xml" in response.headers.get("Content-Type", ""):
        try:
            body = response.read(ERROR_BODY, decode_content=False) or b""
        except (HTTPError, http.client.HTTPException, OSError, ValueError):
            body = b""
        found = _CODE.search(body)
        named = found[1].decode("ascii") if found else ""
    return named if named.isalnum() else ""


def explain(error: BaseException) -> str:
    """A network exception in one redacted line: its innermost cause, without object addresses."""
    inner: BaseException = error
    while True:
        deeper = getattr(inner, "reason", None) or inner.__cause__ or (inner.args[-1:] and inner.args[-1])
        if not isinstance(deeper, BaseException):
            break
        inner = deeper
    if isinstance(inner, IncompleteRead):
        return f"the body ended {inner.expected} bytes early"
    text = re.sub(r"<[^>]*object at 0x[0-9a-f]+>:?\s*", "", str(inner))
    return redact(f"{type(error).__name__}: {text}"[:300])


def proxy_for(url: str) -> str:
    """The proxy for a URL by `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`; "" if none."""
    parts = urlsplit(url)
    if proxy_bypass(parts.netloc.rpartition("@")[2]):
        return ""
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _proxy_manager(proxy: str, size: int) -> urllib3.PoolManager:
    fault = url_fault(proxy)
    if fault:
        raise Failure("final", f"the proxy of the environment is {fault}")
    parts = urlsplit(proxy)
    if parts.scheme not in ("http", "https"):
        raise Failure("final", f"proxy scheme {parts.scheme!r} is not supported (http, https)")
    secret = parts.netloc.rpartition("@")[0]
    headers = urllib3.make_headers(proxy_basic_auth=secret) if secret else None
    return urllib3.ProxyManager(redact_url(proxy), proxy_headers=headers, maxsize=size)


URL_LOGGERS = ("urllib3.connectionpool", "urllib3.connection", "urllib3.util.retry")


class _RedactQueries(logging.Filter):
    """Removes queries, where the token is, from log records."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return True


_REDACT_QUERIES = _RedactQueries()


def redact_url_loggers() -> None:
    """Have urllib3 log addresses without their queries, at every level; at DEBUG it logs each request's."""
    for name in URL_LOGGERS:
        logging.getLogger(name).addFilter(_REDACT_QUERIES)  # a filter that is there already is not added again


def _discard(response: BaseHTTPResponse) -> None:
    """Close a response whose body is of no interest; a short body is read, so that the connection can be kept."""
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and int(length) <= 1 << 16:
        response.drain_conn()
        response.release_conn()
    else:
        response.close()


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port (RFC 6454)."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port
