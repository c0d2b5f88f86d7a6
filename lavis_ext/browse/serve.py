"""Serves one HTML file on loopback, and nothing else of its folder."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lavis_ext.common.errors import UsageError

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")


def serve_page(page: Path, say: Callable[[str], None], port: int = 0) -> None:
    """Serve a page until the process is interrupted; `say` gets the address. Port 0: any free one.

    Raises UsageError for a port that is taken.
    """
    try:
        server = PageServer(page, port)
    except OSError as error:
        raise UsageError(f"port {port}", f"cannot be served: {error.strerror}", "choose another") from error
    with server:
        say(f"{server.address} serves {page}; Ctrl-C ends it")
        server.serve_forever(poll_interval=0.1)


class PageServer(ThreadingHTTPServer):
    """A server on loopback that knows one file."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, page: Path, port: int = 0) -> None:
        self.page = page.resolve()
        super().__init__((HOST, port), PageHandler)

    @property
    def address(self) -> str:
        """What a browser opens."""
        return f"http://{HOST}:{self.server_address[1]}/"

    @property
    def hosts(self) -> set[str]:
        """The `Host` headers that are answered; any other is refused, against DNS rebinding."""
        return {f"{name}:{self.server_address[1]}" for name in NAMES}


class PageHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of `/` with the page as it is now on disk."""

    timeout = 60
    server: PageServer

    def do_GET(self) -> None:
        """The page."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """The headers of GET."""
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Do not log requests."""

    def _answer(self, with_body: bool) -> None:
        if self.headers.get("Host") not in self.server.hosts:
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        if self.path.partition("?")[0] not in ("/", f"/{self.server.page.name}") or not self.server.page.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = self.server.page.read_bytes()
        self.send_response(HTTPStatus.OK)
        for name, value in (("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_body:
            self.wfile.write(body)
