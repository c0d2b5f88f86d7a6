"""A server of pages in a thread, and requests to it as a browser makes them."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from threading import Thread
from typing import Any, NamedTuple

from lavis_ext.browse.serve import PageServer


class Answered(NamedTuple):
    status: int
    text: str
    headers: Message
    body: bytes


@contextmanager
def served(app: Any, say: Callable[[str], None] = print) -> Iterator[PageServer]:
    """The pages of an app until the block ends."""
    with PageServer(app, say) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(5)
            assert not thread.is_alive()


def cookie_of(server: PageServer) -> str:
    return f"{server.cookie}={server.token}"


def ask(
    server: PageServer, path: str, method: str = "GET", host: str | None = None, cookie: str | None = None
) -> Answered:
    """One request, with the server's cookie unless another is given."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    given = {"Cookie": cookie_of(server) if cookie is None else cookie.encode("utf-8").decode("latin-1")}
    connection.request(method, path, headers={**given, **({} if host is None else {"Host": host})})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return Answered(response.status, body.decode("utf-8", "replace"), response.headers, body)
