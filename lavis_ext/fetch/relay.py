"""A door on loopback for another program: it serves named blobs, and signs what it asks Azure for itself."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from lavis_ext.fetch.azure import blob_place
from lavis_ext.fetch.failures import Failure, Stopped, Unsatisfiable
from lavis_ext.fetch.openers import Reply, Request
from lavis_ext.fetch.session import Session

CHUNK = 1 << 18
STATUS = {"access": 403, "final": 404, "unsafe": 403, "transient": 503}
_RANGE = re.compile(r"bytes=(\d+)-(\d*)$")


class Relay:
    """Serves `blobs` (azure: URL → label for progress) at `http://127.0.0.1:PORT/KEY/CONTAINER/BLOB` while it is open.

    KEY is drawn anew each time; only GET and HEAD of these blobs are answered. What Azure refused is in `failures`, by
    URL. A context manager.
    """

    def __init__(self, session: Session, blobs: Mapping[str, str]) -> None:
        self.session = session
        self.failures: dict[str, Failure] = {}
        self.moved: dict[str, int] = dict.fromkeys(blobs, 0)
        self._labels = blobs
        self._key = secrets.token_hex(16)
        self._paths = {self._path(url): url for url in blobs}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.relay = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def url(self, blob: str) -> str:
        """The address of a blob at this door."""
        return f"http://127.0.0.1:{self._server.server_address[1]}{quote(self._path(blob))}"

    def find(self, path: str) -> str | None:
        """The blob behind a request's path, None for any other."""
        return self._paths.get(unquote(urlsplit(path).path))

    def count(self, blob: str, size: int) -> None:
        """Bytes of a blob have passed."""
        with self._lock:
            self.moved[blob] += size
        self.session.progress.advance(self._labels[blob], size)

    def _path(self, blob: str) -> str:
        place = blob_place(blob)
        return f"/{self._key}/{place.container}/{place.blob}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    relay: Relay

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A program that hangs up is no matter."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """The blob's properties."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """The blob, or the range that is asked for."""
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        relay = self.server.relay  # type: ignore[attr-defined]
        blob = relay.find(self.path)
        if blob is None:
            self._refuse(404, "ResourceNotFound")
            return
        found = _RANGE.match(self.headers.get("x-ms-range") or self.headers.get("Range") or "")
        start = int(found[1]) if found else 0
        stop = int(found[2]) + 1 if found and found[2] else None
        try:
            with relay.session.open(Request(blob, start, stop, self.headers.get("If-Match"))) as reply:
                self._head(reply, stop, ranged=found is not None)
                if body:
                    self._pass_on(reply, relay, blob)
        except Unsatisfiable:
            self._refuse(416, "InvalidRange")
        except Failure as failure:
            relay.failures[blob] = failure
            self._refuse(412 if failure.kind == "replaced" else STATUS.get(failure.kind, 503), failure.code)
        except Stopped:
            self.close_connection = True

    def _head(self, reply: Reply, stop: int | None, ranged: bool) -> None:
        if reply.total is None:
            raise Failure("final", "the server does not tell the size")
        end = reply.total if stop is None or not reply.partial else min(stop, reply.total)
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(end - reply.start))
        if ranged:
            self.send_header("Content-Range", f"bytes {reply.start}-{end - 1}/{reply.total}")
        self.send_header("Content-Type", reply.content_type or "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("x-ms-blob-type", "BlockBlob")
        for name, value in (("ETag", reply.validators.etag), ("Last-Modified", reply.validators.last_modified)):
            if value:
                self.send_header(name, value)
        self.end_headers()

    def _pass_on(self, reply: Reply, relay: Relay, blob: str) -> None:
        self.close_connection = True  # until all of it has gone: a body that is cut must look so
        try:
            while data := reply.body.read(CHUNK):
                relay.count(blob, len(data))
                self.wfile.write(data)
        except Failure as failure:
            relay.failures[blob] = failure
            return
        self.close_connection = False

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("x-ms-error-code", code or "InternalError")
        self.send_header("Content-Length", "0")
        self.end_headers()
