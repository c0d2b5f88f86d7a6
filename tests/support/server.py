"""A loopback HTTP/1.1 server with ranges, validators and a script of faults per path; its log says what moved."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

CHUNK = 1 << 16


@dataclass(frozen=True)
class Object:
    """What lies at a path."""

    data: bytes
    etag: str | None
    last_modified: str | None = "Mon, 01 Jan 2024 00:00:00 GMT"
    content_type: str = "application/octet-stream"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the next `times` answers for a path (None: with all of them); offsets are the object's.

    `status` + `headers` + `body`: that answer instead · `redirect`: 302 to there · `cut_at`: the connection ends before
    that byte · `cut_after`: after so many bytes of the body · `stall_at`: silence of `stall` seconds there, or until
    `hold` is set · `rate`: bytes per second · `ignore_range`: 200 and everything · `range_shift`: a Content-Range that
    is off · `extra`: bytes after the end, promised by Content-Length · `flip_at`: one bit there is wrong · `instead`:
    other bytes · `lengthless`: no Content-Length, the connection's end is the body's · `chunked`: chunked coding ·
    `latency`: seconds before the answer · `then`: called when the object of the answer was taken, before it is sent ·
    `only_range`: applies to ranged requests only.
    """

    times: int | None = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    redirect: str = ""
    cut_at: int | None = None
    cut_after: int | None = None
    stall_at: int | None = None
    stall: float = 30.0
    hold: threading.Event | None = None
    rate: float = 0.0
    ignore_range: bool = False
    range_shift: int = 0
    extra: bytes = b""
    flip_at: int | None = None
    instead: bytes | None = None
    lengthless: bool = False
    chunked: bool = False
    latency: float = 0.0
    then: Callable[[], object] | None = None
    only_range: bool = False


@dataclass
class Seen:
    """One request and how much of a body was sent for it."""

    method: str
    path: str
    range: str | None
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class Server:
    """`put` objects or serve a `folder`, `script` faults, read the `log`. A context manager."""

    def __init__(self, folder: Path | None = None, certificate: Path | None = None) -> None:
        self.folder = folder
        self.log: list[Seen] = []
        self.lock = threading.Lock()
        self.objects: dict[str, Object] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.closing = threading.Event()
        self._httpd = _Httpd(("127.0.0.1", 0), _Handler)
        self._httpd.server = self
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._httpd.socket = context.wrap_socket(self._httpd.socket, server_side=True)
        self.scheme = "https" if certificate else "http"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        with suppress(OSError):
            self._httpd.socket.shutdown(socket.SHUT_RDWR)  # wakes `accept`, where `serve_forever` would sleep on
        self._thread.join()
        self._httpd.server_close()

    def _serve(self) -> None:
        """Take connections until the end; a test has hardly begun when another `serve_forever` looks whether to end."""
        while not self.closing.is_set():
            self._httpd.handle_request()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._httpd.server_address[1])

    @property
    def base(self) -> str:
        """`http://127.0.0.1:PORT`, without a slash at the end."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        """The URL of a path that begins with a slash."""
        return self.base + path

    def put(self, path: str, data: bytes, etag: str | None = "auto", **more: Any) -> str:
        """Offer (or replace) an object; returns its URL. `etag=None`: none is sent."""
        tag = f'"{hashlib.md5(data).hexdigest()}"' if etag == "auto" else etag
        self.objects[path] = Object(data, tag, **more)
        return self.url(path)

    def script(self, path: str, *faults: Fault) -> None:
        """The faults of a path, in order; a fault without `times` lasts."""
        with self.lock:
            self.faults[path] = list(faults)

    def next_fault(self, path: str, ranged: bool) -> Fault:
        """The fault for this answer, counted down."""
        with self.lock:
            waiting = self.faults.get(path, [])
            if not waiting or (waiting[0].only_range and not ranged):
                return Fault()
            first = waiting[0]
            if first.times is not None:
                waiting[0] = replace(first, times=first.times - 1)
                if first.times <= 1:
                    waiting.pop(0)
            return first

    def find(self, path: str) -> Object | None:
        """The object at a path: put, or of the folder."""
        if path in self.objects:
            return self.objects[path]
        if self.folder is None:
            return None
        file = self.folder / unquote(path).lstrip("/")
        if ".." in file.parts or not file.is_file():
            return None
        stat = file.stat()
        return Object(
            file.read_bytes(), f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"', formatdate(stat.st_mtime, usegmt=True)
        )

    def requests(self, path: str | None = None) -> list[Seen]:
        """The requests for a path (None: all)."""
        return [seen for seen in self.log if path in (None, seen.path)]

    def sent(self, path: str | None = None) -> int:
        """Body bytes sent for a path."""
        return sum(seen.sent for seen in self.requests(path))


class _Httpd(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    timeout = 1.0  # where `shutdown` of a socket that listens wakes nobody
    server: Server

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 0

    def log_message(self, *_: Any) -> None:
        """The log is `Server.log`."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        world = self.server.server  # type: ignore[attr-defined]
        path = urlsplit(self.path).path
        seen = Seen(self.command, path, self.headers.get("Range"), dict(self.headers.items()))
        with world.lock:
            world.log.append(seen)
        fault = world.next_fault(path, seen.range is not None)
        if fault.latency:
            world.closing.wait(fault.latency)
        found = world.find(path)
        if fault.then is not None:  # before the answer, after which the client asks again at once
            fault.then()
        if fault.status or fault.redirect or found is None:
            self._plain(seen, fault, found is None)
        else:
            self._object(seen, fault, found, body)

    def _plain(self, seen: Seen, fault: Fault, missing: bool) -> None:
        status = fault.status or (302 if fault.redirect else 404)
        headers = {**fault.headers, "Content-Length": str(len(fault.body))}
        if fault.redirect:
            headers["Location"] = fault.redirect
        self._head(seen, status, headers)
        self.wfile.write(fault.body)

    def _object(self, seen: Seen, fault: Fault, found: Object, body: bool) -> None:
        data = found.data if fault.instead is None else fault.instead
        start, stop, status = self._range(seen, fault, found, len(data))
        if status == 416:
            self._head(seen, 416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
            return
        headers = {"Content-Type": found.content_type, "Accept-Ranges": "bytes", **fault.headers}
        if fault.ignore_range:
            del headers["Accept-Ranges"]
        if found.etag:
            headers["ETag"] = found.etag
        if found.last_modified:
            headers["Last-Modified"] = found.last_modified
        if status == 206:
            shown = start + fault.range_shift
            headers["Content-Range"] = f"bytes {shown}-{stop - 1 + fault.range_shift}/{len(data)}"
        if fault.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif fault.lengthless:
            headers["Connection"] = "close"
            self.close_connection = True
        else:
            headers["Content-Length"] = str(stop - start + len(fault.extra))
        self._head(seen, status, headers)
        if body:
            self._body(seen, fault, data, start, stop)

    def _range(self, seen: Seen, fault: Fault, found: Object, size: int) -> tuple[int, int, int]:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", seen.range or "")
        condition = self.headers.get("If-Range")
        current = condition is None or condition in (found.etag, found.last_modified)
        if asked is None or fault.ignore_range or not current:
            return 0, size, 200
        start, stop = int(asked[1]), min(size, int(asked[2]) + 1 if asked[2] else size)
        return (start, stop, 206) if start < size else (0, 0, 416)

    def _body(self, seen: Seen, fault: Fault, data: bytes, start: int, stop: int) -> None:
        if fault.flip_at is not None:
            data = data[: fault.flip_at] + bytes([data[fault.flip_at] ^ 1]) + data[fault.flip_at + 1 :]
        data = data[:stop] + fault.extra
        stop += len(fault.extra)
        end = min(stop, stop if fault.cut_at is None else max(start, fault.cut_at))
        end = min(end, end if fault.cut_after is None else start + fault.cut_after)
        at = start
        while at < end and not self.server.server.closing.is_set():  # type: ignore[attr-defined]
            upto = min(end, at + self._step(fault))
            if fault.stall_at is not None and at < fault.stall_at <= upto:
                upto = fault.stall_at
            self._write(fault, data[at:upto])
            seen.sent += upto - at
            at = upto
            self._wait(fault, at, start)
        if end < stop:
            self.close_connection = True
        elif fault.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _step(self, fault: Fault) -> int:
        return max(1, int(fault.rate / 20)) if fault.rate else CHUNK

    def _write(self, fault: Fault, piece: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if fault.chunked else piece)

    def _wait(self, fault: Fault, at: int, start: int) -> None:
        closing = self.server.server.closing  # type: ignore[attr-defined]
        if fault.rate:
            closing.wait(0.05)
        if fault.stall_at == at and at > start:
            hold = fault.hold
            if hold is None:
                closing.wait(fault.stall)
            else:
                wait_until(lambda: hold.is_set() or closing.is_set(), fault.stall)

    def _head(self, seen: Seen, status: int, headers: dict[str, str]) -> None:
        seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server with nothing on it."""
    with Server() as running:
        yield running


@pytest.fixture
def second() -> Iterator[Server]:
    """Another one: a mirror, another host."""
    with Server() as running:
        yield running


def payload(size: int, seed: int = 0) -> bytes:
    """Bytes that never repeat and are the same every time."""
    out, block = bytearray(), hashlib.sha256(str(seed).encode()).digest()
    while len(out) < size:
        block = hashlib.sha512(block).digest()
        out += block
    return bytes(out[:size])


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.01)
    return holds()
