"""Serves a mirror folder on loopback: whole files and single byte ranges, with ETags, over kept-alive HTTP/1.1."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

log = logging.getLogger(__name__)
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@contextmanager
def serve(root: Path, port: int = 0) -> Iterator[str]:
    """Serve `root` on 127.0.0.1 while the block runs; gives the base URL. Port 0: any free one."""
    with MirrorServer(root, port) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="mirror", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class MirrorServer(ThreadingHTTPServer):
    """A threaded server that knows its folder."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, root: Path, port: int) -> None:
        self.root = root.resolve()
        super().__init__(("127.0.0.1", port), FileHandler)


class FileHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD with files below the server's folder."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    server: MirrorServer

    def do_GET(self) -> None:
        """A whole file, or the range that was asked for."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """The headers of GET."""
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = self._locate()
        if path is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        size, tag = path.stat().st_size, etag(path)
        part = self._wanted(size, tag, formatdate(path.stat().st_mtime, usegmt=True))
        if part is not None and part.start >= part.stop:
            self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, **{"Content-Range": f"bytes */{size}"})
            return
        self._describe(path, size, tag, part)
        if with_body:
            self._send(path, part or range(size))

    def _locate(self) -> Path | None:
        """The file that is asked for; None where there is none, or where it is outside the folder."""
        wanted = unquote(urlsplit(self.path).path).lstrip("/")
        if "\0" in wanted:
            return None
        path = (self.server.root / wanted).resolve()
        return path if path.is_relative_to(self.server.root) and path.is_file() else None

    def _wanted(self, size: int, tag: str, date: str) -> range | None:
        """The bytes that the headers ask for; None: the whole file, also where If-Range names another version."""
        if self.headers.get("If-Range", tag) not in (tag, date):
            return None
        return parse_range(self.headers.get("Range", ""), size)

    def _describe(self, path: Path, size: int, tag: str, part: range | None) -> None:
        headers = {"ETag": tag, "Last-Modified": formatdate(path.stat().st_mtime, usegmt=True)}
        if part is None:
            self._head(HTTPStatus.OK, size, **headers)
        else:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
            self._head(HTTPStatus.PARTIAL_CONTENT, len(part), **headers)

    def _head(self, status: HTTPStatus, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Accept-Ranges": "bytes", "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, path: Path, part: range) -> None:
        """Hand the bytes from the file to the socket; a client that leaves early is no error."""
        if not part:
            return
        try:
            with path.open("rb") as file:
                self.connection.sendfile(file, part.start, len(part))
        except (ConnectionError, TimeoutError) as error:
            log.debug("%s went away: %s", self.client_address, error)
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """To the log, not to the terminal."""
        log.debug(format, *args)


def etag(path: Path) -> str:
    """A strong tag from size and time of change."""
    stat = path.stat()
    return f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"'


def parse_range(header: str, size: int) -> range | None:
    """One `bytes=` range as positions in a file (RFC 9110, 14.1.2); None: serve the whole file; empty: not satisfiable.

    Several ranges in one header are answered with the whole file, as the RFC allows.
    """
    found = RANGE.fullmatch(header.strip())
    if not found or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        return range(max(0, size - int(last)), size) if int(last) else range(size, size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)
