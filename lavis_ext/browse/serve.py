"""Serves pages on loopback: to whoever opens the address with its token, under the names of this machine, and no file.

The token is in the path of the first address; the answer moves it into a cookie, so that no later address, history or
log holds it. A page of another site can neither read nor guess it; by another name for this machine (DNS rebinding)
nothing is answered.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from lavis_ext.browse.html import policy
from lavis_ext.common.errors import LavisExtError, UsageError

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
HTML = "text/html; charset=utf-8"
MAX_FIELDS = 40
DENIED = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>lavis-ext</title>
<p>Open the address that <code>lavis-ext browse --serve</code> printed: it holds the key to this page."""


@dataclass(frozen=True)
class Reply:
    """A body and its type; `lasting`: it stays the same while this server lives; not `found`: the body says why."""

    body: bytes
    kind: str = HTML
    lasting: bool = False
    found: bool = True


class App(Protocol):
    """What is served: answers a path and the fields of its query; None for what is not there."""

    name: str

    def answer(self, path: str, asked: Mapping[str, str]) -> Reply | None:
        """The reply to a request; it may come from several threads at once."""


class PageApp:
    """One HTML file, as it is now on disk."""

    def __init__(self, page: Path) -> None:
        self.page = page.resolve()
        self.name = str(page)

    def answer(self, path: str, asked: Mapping[str, str]) -> Reply | None:
        """The page, at `/` and under its name."""
        there = path in ("/", f"/{self.page.name}") and self.page.is_file()
        return Reply(self.page.read_bytes()) if there else None


def serve(app: App, say: Callable[[str], None], port: int = 0) -> None:
    """Serve until the process is interrupted; `say` gets the address. Port 0: any free one.

    Raises UsageError for a port that is taken, or that is none.
    """
    try:
        server = PageServer(app, say, port)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or "there is no such port"
        raise UsageError(f"--port {port}", f"cannot be served: {why}", "choose another, or leave it out") from error
    with server:
        say(f"{server.address} serves {app.name}; Ctrl-C ends it")
        server.serve_forever(poll_interval=0.1)


class PageServer(ThreadingHTTPServer):
    """A server on loopback."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, app: App, say: Callable[[str], None] = print, port: int = 0) -> None:
        self.app, self.say, self.token = app, say, secrets.token_urlsafe(18)
        super().__init__((HOST, port), PageHandler)

    @property
    def address(self) -> str:
        """What a browser opens; it holds the token."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}"

    @property
    def cookie(self) -> str:
        """The name of the cookie; cookies are shared by all ports of a host."""
        return f"lavis_ext_{self.server_address[1]}"

    @property
    def hosts(self) -> set[str]:
        """The `Host` headers that are answered; any other is refused, against DNS rebinding."""
        return {f"{name}:{self.server_address[1]}" for name in NAMES}

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away is no news."""


class PageHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; requests are not logged."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    server: PageServer

    def do_GET(self) -> None:
        """The page."""
        self._answer()

    def do_HEAD(self) -> None:
        """The headers of GET."""
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Do not log requests: the first one holds the token."""

    def _answer(self) -> None:
        named = self.headers.get_all("Host", [])
        if len(named) != 1 or named[0] not in self.server.hosts:  # of two, somebody between may take the other
            self._send(HTTPStatus.FORBIDDEN, Reply(b"not by this name", "text/plain"))
            return
        given = self.path.partition("?")[0].lstrip("/")
        if self._is_token(given):
            moved = {"Location": "/", "Set-Cookie": f"{self.server.cookie}={given}; HttpOnly; SameSite=Lax; Path=/"}
            self._send(HTTPStatus.SEE_OTHER, Reply(b""), moved)
            return
        if not self._is_token(self._cookie()):
            self._send(HTTPStatus.FORBIDDEN, Reply(DENIED))
            return
        self._send(*self._reply())

    def _reply(self) -> tuple[HTTPStatus, Reply]:
        try:
            parts = urlsplit(self.path)
            asked = dict(parse_qsl(parts.query, max_num_fields=MAX_FIELDS))
            reply = self.server.app.answer(unquote(parts.path), asked)
        except LavisExtError as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, Reply(str(error).encode("utf-8", "replace"), "text/plain")
        except ValueError:  # no address, or too many fields
            return HTTPStatus.BAD_REQUEST, Reply(b"not understood", "text/plain")
        except Exception as error:  # one page that fails does not end the server
            self.server.say(f"a page failed: {type(error).__name__}: {error}")
            return HTTPStatus.INTERNAL_SERVER_ERROR, Reply(b"this page failed", "text/plain")
        if reply is None:
            return HTTPStatus.NOT_FOUND, Reply(b"not here", "text/plain")
        return HTTPStatus.OK if reply.found else HTTPStatus.NOT_FOUND, reply

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode())

    def _cookie(self) -> str:
        found: SimpleCookie = SimpleCookie()
        with suppress(CookieError):
            found.load(self.headers.get("Cookie", ""))
        return found[self.server.cookie].value if self.server.cookie in found else ""

    def _send(self, status: HTTPStatus, reply: Reply, more: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": reply.kind,
            "Content-Length": str(len(reply.body)),
            "Cache-Control": "private, max-age=3600" if reply.lasting else "no-store",
            "Content-Security-Policy": f"{policy(served=True)}; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            **(more or {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)
